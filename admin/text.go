package admin

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/halfproxy/halfproxy/lb"
)

// WriteText writes s for people, in tables for a terminal of 80 columns. Only
// IPv6 addresses at their full length make them wider; names too long for
// their column get a line to themselves, whole, so that they can be copied.
func (s Status) WriteText(w io.Writer, colour bool) error {
	p := &printer{Writer: bufio.NewWriter(w), colour: colour, indent: 2}
	p.node(s)
	p.WriteByte('\n')
	p.services(s)
	p.WriteByte('\n')
	p.bgp(s)
	p.WriteByte('\n')
	p.members(s)
	p.orders(s)
	if err := p.Flush(); err != nil { // holds the first error of all writes
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

const width = 80

// Colours, as the parameter of the escape sequence (ECMA-48, SGR).
const (
	plain  = ""
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

type printer struct {
	*bufio.Writer
	colour bool
	indent int
}

func (p *printer) node(s Status) {
	n := s.Node
	p.heading("NODE", n.Name)
	version := n.Version
	if up := age(s.Time, n.Started); up != "" {
		version += ", up " + up
	}
	p.field("version", plain, version)
	p.health("health", n.Health)
	p.health("ready", n.Ready)
	if n.Draining {
		p.field("draining", yellow, "yes")
	} else {
		p.field("draining", plain, "no")
	}
	p.digest("config", s.ConfigDigest, s.ConfigDiffers)
	t := table{columns: []column{{title: "INTERFACE"}, {title: "XDP"}, {title: "PROGRAM"}}}
	for _, i := range n.Interfaces {
		attached := cell{"attached", green}
		if !i.Attached {
			attached = cell{"not attached", red}
		}
		t.add("", cell{text: i.Name}, cell{text: i.XDPMode}, attached)
	}
	p.table(t)
}

func (p *printer) services(status Status) {
	services, announced := status.Services, 0
	for _, s := range services {
		if s.Announced {
			announced++
		}
	}
	p.heading("SERVICES", share(announced, len(services), "announced"))
	for i, s := range services {
		if i > 0 {
			p.WriteByte('\n')
		}
		p.fold("", bold, s.Name)
		p.indent += 2
		if s.Announced {
			p.field("announced", green, joined(": ", "yes", s.Reason))
		} else {
			p.field("announced", red, joined(": ", "no", s.Reason))
		}
		if s.Panic != "" {
			p.field("panic", red, "health is ignored and all backends are used: "+s.Panic)
		}
		for _, h := range s.HeldBack {
			if !strings.HasSuffix(h.Reason, s.Reason) { // it says more
				p.field("held back", red, joined(": ", h.VIP.String(), h.Reason))
			}
		}
		p.field("vips", plain, strings.Join(texts(s.VIPs), ", "))
		p.field("ports", plain, strings.Join(s.Ports, ", "))
		p.field("forward", plain, s.Forward)
		p.digest("table", s.TableDigest, s.TableDiffers)
		if t := s.Transition; t != nil {
			p.field("transition", plain, fmt.Sprintf("%d slots after %d changes: older flows are kept for %s at most", t.Slots, t.Changes, age(t.Until, status.Time)))
		}
		t := table{columns: []column{
			{title: "BACKEND"}, {title: "ADDRESS"}, {title: "STATE"},
			{title: "WEIGHT", right: true}, {title: "HEALTHY", right: true},
			{title: "PACKETS", right: true}, {title: "BYTES", right: true}, {title: "FLOWS", right: true},
		}}
		for _, b := range s.Backends {
			t.add(joined("; ", b.LastError, b.leaving()),
				cell{text: b.Name}, cell{text: text(b.Address)}, cell{b.State, tone(b.State)},
				cell{text: weight(b)}, cell{text: fmt.Sprintf("%d/%d", b.HealthyObservers, b.Observers)},
				cell{text: short(b.Packets)}, cell{text: short(b.Bytes)}, cell{text: short(b.Flows)})
		}
		p.table(t)
		p.indent -= 2
	}
}

func weight(b Backend) string {
	if b.WeightNow < b.Weight {
		return fmt.Sprintf("%d/%d", b.WeightNow, b.Weight)
	}
	return fmt.Sprint(b.Weight)
}

// leaving says of a backend that gets no new flows what keeps it from being stopped.
func (b Backend) leaving() string {
	switch {
	case b.SafeToStop:
		return "no flows are at it: safe to stop"
	case len(b.HeldBy) > 0:
		return fmt.Sprintf("older flows are still at it, by way of %s (here: %d records, %.0f packets/s): not safe to stop",
			strings.Join(b.HeldBy, ", "), b.FlowRecords, b.PacketsPerSecond)
	}
	return ""
}

func (p *printer) bgp(s Status) {
	established := 0
	t := table{columns: []column{
		{title: "PEER"}, {title: "AS", right: true}, {title: "STATE"},
		{title: "SINCE", right: true}, {title: "BFD"}, {title: "ANNOUNCED", right: true},
	}}
	for _, peer := range s.BGP {
		problem := peer.LastError
		if peer.State == "established" {
			established++
			problem = "" // long past
		}
		t.add(problem,
			cell{text: text(peer.Address)}, cell{text: fmt.Sprint(peer.ASN)}, cell{peer.State, tone(peer.State)},
			cell{text: age(s.Time, peer.Since)}, cell{peer.BFD, tone(peer.BFD)}, cell{text: fmt.Sprint(peer.Announced)})
	}
	p.heading("BGP", share(established, len(s.BGP), "peers established"))
	p.table(t)
	p.aggregates(s)
}

// aggregates are shown where there are any.
func (p *printer) aggregates(s Status) {
	t := table{columns: []column{{title: "AGGREGATE"}, {title: "ANNOUNCED"}, {title: "VIPS", right: true}}}
	for _, a := range s.Aggregates {
		announced := cell{"no", red}
		if a.Announced {
			announced = cell{"yes", green}
		}
		t.add(a.Reason, cell{text: a.Prefix.String()}, announced, cell{text: fmt.Sprintf("%d/%d", a.Serving, a.VIPs)})
	}
	p.table(t)
}

func (p *printer) members(s Status) {
	p.heading("MEMBERS", share(s.Cluster.InSight, max(s.Cluster.Size, len(s.Members)), "in sight"))
	for _, name := range s.Cluster.Blind {
		p.field("blind", yellow, name+" sees most backends down that the others see up: it does not vote")
	}
	if s.Cluster.Frozen {
		p.field("verdicts", red, "frozen as they were: too few members in sight for a majority")
	}
	t := table{columns: []column{{title: "MEMBER"}, {title: "ADDRESS"}, {title: "STATE"}, {title: "CONFIG"}}}
	for _, m := range s.Members {
		config := cell{"same", green}
		switch m.ConfigDigest {
		case s.ConfigDigest:
		case "":
			config = cell{"unknown", yellow}
		default:
			config = cell{"differs", red}
		}
		t.add("", cell{text: m.Name}, cell{text: text(m.Address)}, cell{m.State, tone(m.State)}, config)
	}
	p.table(t)
}

// orders are shown where there are any.
func (p *printer) orders(s Status) {
	if len(s.Orders) == 0 {
		return
	}
	p.WriteByte('\n')
	p.heading("ORDERS", fmt.Sprintf("%d in force", len(s.Orders)))
	t := table{columns: []column{{title: "OF"}, {title: "NAME"}, {title: "ORDER"}, {title: "BY"}, {title: "SINCE", right: true}, {title: "FOR", right: true}}}
	for _, o := range s.Orders {
		action := o.Action
		if o.Action == lb.Weigh.String() {
			action = fmt.Sprintf("weight %d", o.Weight)
		}
		t.add("", cell{text: o.Kind}, cell{text: o.Name}, cell{action, yellow}, cell{text: joined(" on ", o.By, o.Member)},
			cell{text: age(s.Time, o.At)}, cell{text: age(o.Until, s.Time)})
	}
	p.table(t)
}

func (p *printer) heading(title, rest string) {
	p.WriteString(joined("  ", p.paint(bold, title), clean(rest)) + "\n")
}

func (p *printer) health(label string, h Health) {
	p.field(label, tone(h.Status), joined(": ", h.Status, strings.Join(h.Reasons, "; ")))
}

func (p *printer) digest(label, digest string, differs []string) {
	if len(differs) == 0 {
		p.field(label, plain, digest)
		return
	}
	p.field(label, red, joined(", ", digest, "differs on "+strings.Join(differs, ", ")))
}

// field writes a labelled text.
func (p *printer) field(label, colour, text string) {
	p.fold(fmt.Sprintf("%-*s", len("announced")+2, label), colour, text)
}

// fold writes text after label, on as many lines as it takes, the others
// indented as far. A word wider than that stays whole.
func (p *printer) fold(label, colour, text string) {
	room := width - p.indent - len(label)
	var line string
	flush := func() {
		p.WriteString(strings.Repeat(" ", p.indent) + label + p.paint(colour, line) + "\n")
		label, line = strings.Repeat(" ", len(label)), ""
	}
	for _, word := range strings.Fields(cmp.Or(clean(text), "-")) {
		if line != "" && runes(line)+1+runes(word) > room {
			flush()
		}
		line = joined(" ", line, word)
	}
	flush()
}

func (p *printer) paint(colour, text string) string {
	if !p.colour || colour == plain || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

type table struct {
	columns []column
	rows    []row
}

type column struct {
	title string
	right bool // aligned, as numbers are
}

type row struct {
	cells []cell
	note  string // written below it
}

type cell struct{ text, colour string }

// add cleans the cells: some texts come from other machines.
func (t *table) add(note string, cells ...cell) {
	for i, c := range cells {
		cells[i].text = cmp.Or(clean(c.text), "-")
	}
	t.rows = append(t.rows, row{cells, note})
}

func (p *printer) table(t table) {
	if len(t.rows) == 0 {
		return
	}
	const gap = "  "
	indent := strings.Repeat(" ", p.indent)
	titles := make([]cell, len(t.columns))
	widths := make([]int, len(t.columns))
	room := width - p.indent // for the first column
	for i := len(t.columns) - 1; i >= 0; i-- {
		titles[i] = cell{text: t.columns[i].title}
		widths[i] = len(titles[i].text)
		for _, r := range t.rows {
			if n := runes(r.cells[i].text); i > 0 || n <= room {
				widths[i] = max(widths[i], n)
			}
		}
		room -= widths[i] + len(gap)
	}

	line := func(cells []cell) {
		for i, c := range cells {
			padding := strings.Repeat(" ", widths[i]-runes(c.text))
			c.text = p.paint(c.colour, c.text)
			switch {
			case t.columns[i].right:
				c.text = padding + c.text
			case i < len(cells)-1:
				c.text += padding
			}
			if i == 0 {
				p.WriteString(indent + c.text)
			} else {
				p.WriteString(gap + c.text)
			}
		}
		p.WriteByte('\n')
	}
	line(titles)
	for _, r := range t.rows {
		if name := r.cells[0]; runes(name.text) > widths[0] {
			p.WriteString(indent + p.paint(name.colour, name.text) + "\n")
			r.cells[0] = cell{}
		}
		line(r.cells)
		if r.note != "" {
			p.fold(gap, red, r.note)
		}
	}
}

func share(n, all int, what string) string {
	if all == 0 {
		return "none"
	}
	return fmt.Sprintf("%d of %d %s", n, all, what)
}

// tone is the colour of a state's name.
func tone(state string) string {
	switch state {
	case "ok", "up", "established", "alive":
		return green
	case "draining", "drained", "unknown", "suspect":
		return yellow
	case "off", "":
		return plain
	}
	return red
}

// age is the time from since to now, in its two largest units; empty if either
// is not known.
func age(now, since time.Time) string {
	if now.IsZero() || since.IsZero() {
		return ""
	}
	d := max(0, now.Sub(since))
	days, hours, minutes := d/(24*time.Hour), d/time.Hour%24, d/time.Minute%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, d/time.Second%60)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// short writes n in at most four characters, in powers of 1000.
func short(n uint64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	f, units := float64(n)/1000, "kMGTPE"
	for ; f >= 999.5; f /= 1000 {
		units = units[1:]
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f%c", f, units[0])
	}
	return fmt.Sprintf("%.0f%c", f, units[0])
}

// text is an address, empty where the zero value's String has an explanation.
func text(address interface {
	IsValid() bool
	String() string
}) string {
	if !address.IsValid() {
		return ""
	}
	return address.String()
}

func texts[T fmt.Stringer](values []T) []string {
	var list []string
	for _, v := range values {
		list = append(list, v.String())
	}
	return list
}

// joined is a and b with separator between them if there are both.
func joined(separator, a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + separator + b
}

// clean makes one line of text and takes out what could steer a terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return '?'
	}, text)
}

func runes(text string) int { return utf8.RuneCountInString(text) }
