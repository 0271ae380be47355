package setup

import (
	"fmt"
	"net/netip"
	"strings"
)

// Options are what no kernel knows.
type Options struct {
	ASN, RouterASN uint32 // 0: placeholders, marked so
	Name           string // the host's
	Services       string // YAML of the services; empty: none, and an example
}

// Placeholders of AS numbers, of those for documentation (RFC 5398).
const (
	ourASN    = 64500
	routerASN = 64501
)

// File is a configuration for the host, with comments for who goes on with it. The
// guesses in it are listed beside it, in words.
func File(h Host, o Options) (text string, guesses []string) {
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	guess := func(format string, args ...any) { guesses = append(guesses, fmt.Sprintf(format, args...)) }

	line("# yaml-language-server: $schema=/usr/share/halfproxy/halfproxy.schema.json")
	line("# A load balancer node, begun by `halfproxy init`. What was guessed is marked GUESS.")
	line("# Every option: halfproxy.yaml in the documents, or `halfproxy check --expand`.")
	line("# After each change: halfproxy check --diff && systemctl reload halfproxy")
	line("")
	line("node:")
	line("  # Unique in the cluster. Left out, it is the host name, which is %s now.", o.Name)
	line("  # name: %s", o.Name)
	line("")
	if h.Why == "" {
		line("  # The NICs that carry VIP traffic.")
	} else {
		line("  # The NICs that carry VIP traffic. GUESS: %s.", h.Why)
		guess("node.interfaces: %s, %s", h.Interface, h.Why)
	}
	line("  interfaces: [%s]", h.Interface)

	local := h.IPv4
	if !local.IsValid() {
		local = h.IPv6
	}
	line("")
	line("# The other nodes. Without this section the node stands alone. The key is the same on")
	line("# all: head -c 32 /dev/urandom | base64 > /etc/halfproxy/cluster.key, for the group")
	line("# halfproxy alone (chmod 640).")
	line("# cluster:")
	line("#   name: edge")
	if local.IsValid() {
		line("#   listen: \"%v\"          # GUESS: the first address of %s", netip.AddrPortFrom(local, 7946), h.Interface)
	} else {
		line("#   listen: 192.0.2.1:7946   # an address of this node")
	}
	line("#   join: [192.0.2.2, 192.0.2.3]")
	line("#   key_file: cluster.key")
	line("")
	bgp(line, guess, h, o)
	line("")
	if o.Services != "" {
		out.WriteString(o.Services)
		return out.String(), guesses
	}
	line("# What clients ask for, and who answers. For a start:")
	line("#")
	line("# services:")
	line("#   - name: web")
	line("#     vips: [203.0.113.10]")
	line("#     ports: [tcp/80, tcp/443]")
	line("#     forward: l2              # ipip, gre or gue where backends are not on this link")
	line("#     backends:")
	line("#       - {name: web1, address: 192.0.2.11}")
	line("#     check: {type: http, port: 80, path: /healthz}")
	line("services: []")
	return out.String(), guesses
}

// bgp writes the section about routers; as a comment, where none is known.
func bgp(line, guess func(string, ...any), h Host, o Options) {
	routers := []netip.Addr{h.Router4, h.Router6}
	known := h.Router4.IsValid() || h.Router6.IsValid()
	id := h.IPv4
	mark := ""
	if !known || !id.IsValid() {
		mark = "# "
		line("# The routers that learn the VIPs. Nothing is announced yet:")
		line("# %s.", missing(known))
	} else {
		line("# The routers that learn the VIPs.")
	}
	number := func(indent string, asn, placeholder uint32) {
		if asn != 0 {
			line("%s%sasn: %d", mark, indent, asn)
			return
		}
		line("%s%sasn: %d   # PLACEHOLDER: no host knows it, ask who runs the router", mark, indent, placeholder)
	}
	line("%sbgp:", mark)
	number("  ", o.ASN, ourASN)
	if id.IsValid() {
		line("%s  # GUESS: the first IPv4 address of %s.", mark, h.Interface)
	} else {
		id = netip.MustParseAddr("192.0.2.1")
		line("%s  # PLACEHOLDER: an IPv4 address, unique among the routers.", mark)
	}
	line("%s  router_id: %v", mark, id)
	line("%s  peers:", mark)
	if !known {
		routers = []netip.Addr{netip.MustParseAddr("192.0.2.254")}
	}
	for _, r := range routers {
		if !r.IsValid() {
			continue
		}
		if known {
			line("%s    # GUESS: the default route goes there.", mark)
		}
		line("%s    - address: \"%v\"", mark, r)
		number("      ", o.RouterASN, routerASN)
		line("%s      # bfd: {interval: 300ms, multiplier: 3}   # the router notices a dead node within a second", mark)
		line("%s      # password_file: bgp.password             # TCP MD5", mark)
		if mark == "" {
			guess("bgp.peers: %v, where the default route goes", r)
		}
	}
	if mark == "" {
		guess("bgp.router_id: %v, the first IPv4 address of %s", id, h.Interface)
		if o.ASN == 0 || o.RouterASN == 0 {
			guess("AS numbers marked PLACEHOLDER: no host knows them, put the real ones there")
		}
	}
}

func missing(router bool) string {
	if router {
		return "the interface has no IPv4 address to take a router_id from"
	}
	return "the interface has no default route that would tell of a router"
}
