package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/config"
)

// settings is the configuration that the node runs by, for who asks over the socket.
func (n *node) settings(salt []byte) []admin.Setting {
	var list []admin.Setting
	for _, s := range config.Seal(n.config().Settings(), salt) {
		list = append(list, admin.Setting(s))
	}
	return list
}

// printDiff says what a reload would change in the node that runs. The error says why
// the node would not take it.
func printDiff(ctx context.Context, out io.Writer, socket string, cfg config.Config) error {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	running, err := admin.NewClient(socket).Settings(ctx, salt)
	if err != nil {
		return err
	}
	old := make([]config.Setting, len(running))
	for i, s := range running {
		old[i] = config.Setting(s)
	}
	changes := config.Diff(old, config.Seal(cfg.Settings(), salt))
	if len(changes) == 0 {
		fmt.Fprintln(out, "a reload would change nothing")
		return nil
	}
	refused := 0
	for _, c := range changes {
		fmt.Fprintln(out, c)
		if c.NeedsRestart() {
			refused++
		}
		fmt.Fprintf(out, "    %s\n", effect(c))
	}
	if refused > 0 {
		return errors.New("a reload would change nothing, as it is refused: " + count(refused, "change") + " above can be taken by a restart alone")
	}
	return nil
}

// effects say what a reload does about a change, by the first one whose key fits.
var effects = []struct{ within, key, says string }{
	{"services", "vips", "routers are told of the new ones when the service can serve, and the others are withdrawn"},
	{"services", "ports", "packets for other ports pass to the kernel, connections to them break"},
	{"services", "hash", "flows find other backends: connections break"},
	{"services", "forward", "packets go to the backends in the new way at once: they have to take them"},
	{"services", "gue", "packets go to the backends in the new way at once: they have to take them"},
	{"services", "outer_sources", "backends have to take packets from the new ones"},
	{"services", "quic", "connections whose client moves may break"},
	{"services", "backends", "the table is made anew; flows that have begun stay where they are"},
	{"services", "flow_lifetime", "holds at once, for changes of the past too"},
	{"services", "check", "backends are judged anew; until there is a verdict the old one stands"},
	{"services", "announce", "routes are sent, withdrawn or sent anew, while sessions stay up"},
	{"bgp", "peers", "where the session itself is another it is made anew; else routes are sent anew"},
	{"bgp", "aggregates", "routes are sent, withdrawn or sent anew, while sessions stay up"},
	{"bgp", "communities", "routes are sent anew, while sessions stay up"},
	{"cluster", "key_file", "holds for messages from now on"},
	{"node", "deny_file", "the list is taken at once"},
}

func effect(c config.Change) string {
	section, rest, _ := strings.Cut(c.Path, " ")
	if name, key, ok := strings.Cut(c.Path, "."); ok && !strings.Contains(name, " ") {
		section, rest = name, key
	}
	switch {
	case c.NeedsRestart() && strings.HasSuffix(c.Path, "hash_key_file"):
		return "every flow would go to another backend: name a copy of the file that cluster.key_file was, or restart all nodes at once"
	case c.NeedsRestart():
		return "a reload cannot follow: restart the node, or take the change back"
	case c.Entry && strings.Contains(rest, "backends "):
		if c.New {
			return "it gets its share of new flows once it is up; flows that have begun stay where they are"
		}
		return "its flows go to others at once and break: drain it first, where they are to end by themselves"
	case c.Entry && section == "services":
		if c.New {
			return "its VIPs are announced once it can serve"
		}
		return "its VIPs are withdrawn, and packets for them pass to the kernel"
	case c.Entry && strings.HasPrefix(rest, "aggregates"):
		if c.New {
			return "it is announced while a VIP in it is"
		}
		return "it is withdrawn, once those who were told of it alone know its VIPs"
	case c.Entry:
		if c.New {
			return "a session is opened"
		}
		return "the session is closed, and the router drops the routes"
	}
	_, inner, _ := strings.Cut(rest, ": ")
	for _, e := range effects {
		if e.within == section && (strings.HasPrefix(rest, e.key) || inner != "" && strings.HasPrefix(inner, e.key)) {
			return e.says
		}
	}
	return "holds at once"
}
