package setup

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/halfproxy/halfproxy/lb"
)

// directive is a line of a configuration of keepalived, with its block.
type directive struct {
	line  int
	words []string
	block []directive
}

func (d directive) name() string { return d.words[0] }

// word is the nth word behind the name, empty if there is none.
func (d directive) word(n int) string {
	if n+1 < len(d.words) {
		return d.words[n+1]
	}
	return ""
}

// Converted are services, as YAML, and what of the other configuration is not in them.
type Converted struct {
	Services string
	Notes    []string // FILE:LINE: what was changed or left out, and why
}

// FromKeepalived makes services of the virtual servers of a configuration of
// keepalived, where they forward directly (DR) or through tunnels (TUN).
func FromKeepalived(name, text string) (Converted, error) {
	all, err := parseKeepalived(name, text)
	if err != nil {
		return Converted{}, err
	}
	c := converter{file: name, groups: map[string]directive{}}
	for _, d := range all {
		if d.name() == "virtual_server_group" {
			c.groups[d.word(0)] = d
		}
	}
	for _, d := range all {
		switch d.name() {
		case "virtual_server":
			c.virtualServer(d)
		case "virtual_server_group":
		case "include":
			c.note(d, "left out: put that file in its place, and convert the whole")
		case "vrrp_instance", "vrrp_sync_group", "vrrp_script", "vrrp_track_process":
			c.note(d, "left out: every node announces the VIPs by BGP, and withdraws them by itself")
		default:
			c.note(d, "left out: it has no meaning here")
		}
	}
	out := "services: []\n"
	if c.count > 0 {
		out = "services:\n" + c.out.String()
	}
	slices.SortStableFunc(c.notes, func(a, b note) int { return a.line - b.line })
	result := Converted{Services: out}
	for _, n := range c.notes {
		result.Notes = append(result.Notes, n.text)
	}
	return result, nil
}

// parseKeepalived reads words, blocks in braces, strings in quotes, and comments
// that begin with # or !.
func parseKeepalived(name, text string) ([]directive, error) {
	root := directive{}
	open := []*directive{&root}
	for i, line := range strings.Split(text, "\n") {
		words, err := fields(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, i+1, err)
		}
		// A brace may stand at the end of its line, on one of its own, or between words.
		for len(words) > 0 {
			top := open[len(open)-1]
			n := slices.IndexFunc(words, func(w string) bool { return w == "{" || w == "}" })
			if n < 0 {
				n = len(words)
			}
			if n > 0 {
				top.block = append(top.block, directive{line: i + 1, words: words[:n]})
			}
			if words = words[n:]; len(words) == 0 {
				break
			}
			if words[0] == "{" {
				if len(top.block) == 0 {
					return nil, fmt.Errorf("%s:%d: a block without a name: is it a configuration of keepalived?", name, i+1)
				}
				open = append(open, &top.block[len(top.block)-1])
			} else {
				if len(open) == 1 {
					return nil, fmt.Errorf("%s:%d: a } closes nothing: look at the braces above", name, i+1)
				}
				open = open[:len(open)-1]
			}
			words = words[1:]
		}
	}
	if len(open) > 1 {
		return nil, fmt.Errorf("%s:%d: %s is not closed: a } is missing", name, open[len(open)-1].line, open[len(open)-1].name())
	}
	return root.block, nil
}

// fields gives the words of a line, without its comment.
func fields(line string) ([]string, error) {
	var words []string
	for {
		line = strings.TrimLeft(line, " \t\r")
		switch {
		case line == "" || line[0] == '#' || line[0] == '!':
			return words, nil
		case line[0] == '"' || line[0] == '\'':
			end := strings.IndexByte(line[1:], line[0])
			if end < 0 {
				return nil, errors.New("a quote is not closed")
			}
			words, line = append(words, line[1:1+end]), line[end+2:]
		case line[0] == '{' || line[0] == '}':
			words, line = append(words, line[:1]), line[1:]
		default:
			end := strings.IndexAny(line, " \t\r{}")
			if end < 0 {
				end = len(line)
			}
			words, line = append(words, line[:end]), line[end:]
		}
	}
}

type converter struct {
	file   string
	groups map[string]directive // by name
	out    strings.Builder
	count  int
	notes  []note
}

type note struct {
	line int
	text string
}

// note says what becomes of a directive.
func (c *converter) note(d directive, format string, args ...any) {
	c.notes = append(c.notes, note{d.line, fmt.Sprintf("%s:%d: %s: %s", c.file, d.line, strings.Join(d.words, " "), fmt.Sprintf(format, args...))})
}

// service is a virtual server on its way.
type service struct {
	vips       []string
	port       string // of the protocol; * is all
	protocol   string
	forward    string
	guePort    string
	hash       string
	interval   string
	quorum     string
	backends   []server
	check      string // YAML, in braces
	checkIsFor int    // the line of what it was made of
}

type server struct {
	name, address string
	weight        int
}

// virtualServer converts a block, or says why it cannot be.
func (c *converter) virtualServer(d directive) {
	listens := map[string][]string{} // VIPs by port
	switch d.word(0) {
	case "fwmark":
		c.note(d, "left out whole: there are no marks of firewalls here, list VIPs and ports")
		return
	case "group":
		group, known := c.groups[d.word(1)]
		if !known {
			c.note(d, "left out whole: there is no virtual_server_group of this name")
			return
		}
		for _, entry := range group.block {
			vips, err := addressesOf(entry.name())
			if err != nil {
				c.note(entry, "left out: %v", err)
				continue
			}
			port := cmp.Or(entry.word(0), "0")
			listens[port] = append(listens[port], vips...)
		}
	default:
		vips, err := addressesOf(d.word(0))
		if err != nil {
			c.note(d, "left out whole: %v", err)
			return
		}
		listens[cmp.Or(d.word(1), "0")] = vips
	}

	s, ok := c.shared(d)
	if !ok {
		return
	}
	for _, port := range slices.Sorted(maps.Keys(listens)) {
		one := s
		one.vips, one.port = listens[port], port
		if port == "0" {
			one.port = "*"
		}
		c.finish(d, one)
	}
}

// shared reads what is the same for all ports of a virtual server.
func (c *converter) shared(d directive) (service, bool) {
	s := service{protocol: "tcp", interval: "60s"} // KEEPALIVED_DEFAULT_DELAY
	kind := ""
	for _, k := range d.block {
		switch k.name() {
		case "delay_loop":
			s.interval = c.seconds(k, s.interval)
		case "protocol":
			s.protocol = strings.ToLower(k.word(0))
		case "lb_kind", "lvs_method":
			kind = k.word(0)
			s.forward, s.guePort = tunnel(k.words[1:])
		case "lb_algo", "lvs_sched":
			switch k.word(0) {
			case "sh":
				s.hash = "source"
			case "mh":
			default:
				c.note(k, "left out: flows are spread by a hash and the backends' weights, so that all nodes agree")
			}
		case "persistence_timeout":
			s.hash = "source"
			c.note(k, "became hash: source, which keeps a client at one backend without a time")
		case "quorum":
			s.quorum = k.word(0)
		case "real_server":
			c.realServer(&s, k)
			if port := d.word(1); d.word(0) != "group" && k.word(1) != "" && k.word(1) != port {
				c.note(k, "its port is left out: packets keep that of the VIP, %s, where the server has to listen", port)
			}
		default:
			c.note(k, "left out")
		}
	}
	switch {
	case s.forward == "":
		c.note(d, "left out whole: lvs_method %s changes addresses or sends answers back through the balancer, here backends answer clients directly", cmp.Or(kind, "NAT"))
		return s, false
	case !slices.Contains([]string{"tcp", "udp", "sctp"}, s.protocol):
		c.note(d, "left out whole: protocol %s is not known here", s.protocol)
		return s, false
	case len(s.backends) == 0:
		c.note(d, "left out whole: it has no real_server")
		return s, false
	}
	return s, true
}

// tunnel is the way to the backends that the words of lvs_method name; empty: none
// of ours.
func tunnel(words []string) (forward, guePort string) {
	if len(words) == 0 {
		return "", ""
	}
	switch words[0] {
	case "DR":
		return "l2", ""
	case "TUN":
		forward = "ipip"
		for i, w := range words {
			if w == "type" && i+1 < len(words) {
				forward = words[i+1]
			}
			if w == "port" && i+1 < len(words) {
				guePort = words[i+1]
			}
		}
	}
	return forward, guePort
}

func (c *converter) realServer(s *service, d directive) {
	b := server{address: d.word(0), weight: 1}
	check := ""
	for _, k := range d.block {
		switch k.name() {
		case "weight":
			weight, err := strconv.Atoi(k.word(0))
			if err != nil || weight < 0 {
				c.note(k, "left out: it is no weight")
				continue
			}
			b.weight = weight
		case "TCP_CHECK", "HTTP_GET", "SSL_GET":
			check = c.check(k)
		case "lvs_method":
			if forward, _ := tunnel(k.words[1:]); forward != s.forward {
				c.note(k, "left out: a service has one way to all its backends")
			}
		default:
			c.note(k, "left out")
		}
	}
	switch {
	case check == "":
	case s.check == "":
		s.check, s.checkIsFor = check, d.line
	case s.check != check:
		c.note(d, "its check is left out: a service has one for all backends, that of line %d", s.checkIsFor)
	}
	b.name = "rs-" + strings.ReplaceAll(b.address, ":", "-")
	s.backends = append(s.backends, b)
}

// check gives the options of a check, but for its interval.
func (c *converter) check(d directive) string {
	var options []string
	switch d.name() {
	case "TCP_CHECK":
		options = []string{"type: tcp"}
	case "HTTP_GET":
		options = []string{"type: http"}
	case "SSL_GET":
		options = []string{"type: https", "verify: false"} // keepalived looks at no certificate
	}
	urls := 0
	for _, k := range d.block {
		switch k.name() {
		case "connect_port":
			options = append(options, "port: "+k.word(0), "via: direct")
		case "connect_timeout":
			options = append(options, "timeout: "+c.seconds(k, "5s"))
		case "retry", "nb_get_retry":
			if n, err := strconv.Atoi(k.word(0)); err == nil {
				options = append(options, fmt.Sprintf("fall: %d", n+1))
			}
		case "virtualhost":
			options = append(options, "host: "+strconv.Quote(k.word(0)))
		case "url":
			if urls++; urls > 1 {
				c.note(k, "left out: a check asks for one path")
				continue
			}
			options = append(options, c.url(k)...)
		default:
			c.note(k, "left out")
		}
	}
	slices.Sort(options[1:])
	return strings.Join(options, ", ")
}

func (c *converter) url(d directive) (options []string) {
	for _, k := range d.block {
		switch k.name() {
		case "path":
			options = append(options, "path: "+strconv.Quote(k.word(0)))
		case "status_code":
			options = append(options, "status: "+strconv.Quote(strings.Join(k.words[1:], ",")))
		case "virtualhost":
			options = append(options, "host: "+strconv.Quote(k.word(0)))
		case "digest":
			c.note(k, "left out: give the text that the answer contains as body")
		default:
			c.note(k, "left out")
		}
	}
	return options
}

// seconds is a time of keepalived, in seconds with parts, in ours.
func (c *converter) seconds(d directive, otherwise string) string {
	n, err := strconv.ParseFloat(d.word(0), 64)
	if err != nil || n <= 0 {
		c.note(d, "is no time: %s stands in for it", otherwise)
		return otherwise
	}
	return strconv.FormatFloat(n, 'f', -1, 64) + "s"
}

// finish writes a service, or says why there is none.
func (c *converter) finish(d directive, s service) {
	check := s.check
	switch {
	case check != "":
	case s.protocol == "tcp" && s.port != "*":
		check = "type: tcp"
		c.note(d, "no check of it can be converted: it is tcp here, docs/health.md has all types")
	default:
		c.note(d, "left out whole: none of its checks can be converted, and there is no right one for all of %s/%s: write it by docs/health.md", s.protocol, s.port)
		return
	}
	if strings.HasPrefix(check, "type: tcp") && s.protocol != "tcp" && !strings.Contains(check, "port: ") || s.port == "*" && !strings.Contains(check, "port: ") {
		c.note(d, "left out whole: its check names no port, and %s/%s has none to try", s.protocol, s.port)
		return
	}
	c.count++
	line := func(format string, args ...any) { fmt.Fprintf(&c.out, format+"\n", args...) }
	line("  - name: %s-%s-%s", s.protocol, strings.Replace(s.port, "*", "all", 1), strings.ReplaceAll(s.vips[0], ":", "-"))
	line("    vips: [%s]", quoted(s.vips))
	line("    ports: [%s/%s]", s.protocol, s.port)
	line("    forward: %s", s.forward)
	if s.guePort != "" && s.forward == "gue" {
		line("    gue: {port: %s}", s.guePort)
	}
	if s.hash != "" {
		line("    hash: %s", s.hash)
	}
	line("    backends:")
	equal := !slices.ContainsFunc(s.backends, func(b server) bool { return b.weight != s.backends[0].weight })
	most := slices.MaxFunc(s.backends, func(a, b server) int { return a.weight - b.weight }).weight
	for _, b := range s.backends {
		weight := ""
		if !equal || b.weight == 0 {
			weight = fmt.Sprintf(", weight: %d", scaled(b.weight, most))
		}
		line("      - {name: %s, address: %q%s}", b.name, b.address, weight)
	}
	if most > lb.MaxWeight {
		c.note(d, "weights are scaled down to %d at most", lb.MaxWeight)
	}
	line("    check: {%s, interval: %s}", c.withTimeout(d, check, s.interval), s.interval)
	if s.quorum != "" && s.quorum != "1" {
		if n, err := strconv.Atoi(s.quorum); equal && most == 1 && err == nil && n <= len(s.backends) {
			line("    announce: {min_healthy: %d}", n)
		} else {
			c.note(d, "quorum %s is left out: it is about weights, announce.min_healthy is a number of backends or a share", s.quorum)
		}
	}
}

// scaled keeps the ratios of weights that are small, with room between them.
func scaled(weight, most int) int {
	switch {
	case most > lb.MaxWeight:
		return weight * lb.MaxWeight / most
	case most <= 100:
		return weight * 100
	}
	return weight
}

// withTimeout takes care that a probe is over before the next begins.
func (c *converter) withTimeout(d directive, check, interval string) string {
	every, _ := strconv.ParseFloat(strings.TrimSuffix(interval, "s"), 64)
	options := strings.Split(check, ", ")
	for i, o := range options {
		text, is := strings.CutPrefix(o, "timeout: ")
		if timeout, err := strconv.ParseFloat(strings.TrimSuffix(text, "s"), 64); is && err == nil && timeout >= every {
			c.note(d, "connect_timeout %s is as long as delay_loop %s, it is half of that here", text, interval)
			options[i] = fmt.Sprintf("timeout: %dms", int(every*500))
		}
	}
	return strings.Join(options, ", ")
}

// addressesOf gives the addresses of 192.0.2.1, or of 192.0.2.1-9.
func addressesOf(text string) ([]string, error) {
	first, last, ranged := strings.Cut(text, "-")
	addr, err := netip.ParseAddr(first)
	if err != nil {
		return nil, fmt.Errorf("%q is no address: names of hosts and marks are not converted", text)
	}
	if !ranged {
		return []string{first}, nil
	}
	base := 10
	cut := strings.LastIndexAny(first, ".:") + 1
	if addr.Is6() {
		base = 16
	}
	from, err1 := strconv.ParseUint(first[cut:], base, 16)
	to, err2 := strconv.ParseUint(last, base, 16)
	if err1 != nil || err2 != nil || to < from || to-from > 255 {
		return nil, fmt.Errorf("%q is no range of addresses", text)
	}
	var list []string
	for n := from; n <= to; n++ {
		list = append(list, first[:cut]+strconv.FormatUint(n, base))
	}
	return list, nil
}

func quoted(list []string) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = strconv.Quote(w)
	}
	return strings.Join(words, ", ")
}
