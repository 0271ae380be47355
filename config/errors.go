package config

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// Error is one thing that is wrong with a file.
type Error struct {
	File string // as it was given to Load or Parse
	Line int
	Err  error // path in the file, what is wrong with it, and the remedy
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// Errors is everything that is wrong with a file, by line. As a string it is
// one line an error.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives every single error to errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, err := range e {
		list[i] = err
	}
	return list
}

// place is where in a file something stands, or would stand.
type place struct {
	file  string // the one that was included; empty: the file itself
	line  int
	path  string // as errors show it: services[1] "web": check.timeout
	state state
}

// state tells what the file has at a place.
type state uint8

const (
	absent state = iota
	given
	broken // something unusable, reported already, or it is inside of such
)

// put makes at the place of what embeds one.
func (p *place) put(at place) { *p = at }

// here is that place.
func (p *place) here() place { return *p }

// key is the place of a mapping's key; it has the mapping's line until it is
// found in the file.
func (p place) key(name string) place {
	switch {
	case p.path == "":
		p.path = name
	case strings.HasSuffix(p.path, ":"):
		p.path += " " + name
	default:
		p.path += "." + name
	}
	if p.state == given {
		p.state = absent
	}
	return p
}

// entry is the place of a list's entry, which the file does have.
func (p place) entry(i, line int) place {
	return place{file: p.file, line: line, path: fmt.Sprintf("%s[%d]", p.path, i), state: given}
}

// seen is where p is, for an error about something at another place.
func (p place) seen(from place) string {
	switch p.file {
	case from.file:
		return fmt.Sprintf("line %d", p.line)
	case "":
		return fmt.Sprintf("line %d of the file that includes this one", p.line)
	}
	return fmt.Sprintf("line %d of %s", p.line, p.file)
}

func (p place) isEntry() bool { return strings.HasSuffix(p.path, "]") }

// label puts the name of the mapping that is a list's entry into its path.
func (p place) label(name string) place {
	if name != "" {
		p.path += fmt.Sprintf(" %q", clip(name))
	}
	p.path += ":"
	return p
}

// clip keeps what is quoted in a message readable.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// report gathers what is wrong with a file, and what holds of it.
type report struct {
	file  string
	list  Errors
	notes map[string]note // by path

	// secrets are digests of what is read from files, by the path of their names.
	secrets map[string][]byte
}

// note is what holds at a place.
type note struct {
	value  any
	silent bool              // the file does not say it
	takes  func(value) error // what is wrong with another value
}

// keepSecret notes what a file holds that stands at p, by a digest.
func (r *report) keepSecret(p place, content []byte) {
	if r.secrets == nil {
		r.secrets = map[string][]byte{}
	}
	r.secrets[p.path] = digest(content)
}

func digest(content []byte) []byte {
	sum := sha256.Sum256(content)
	return sum[:]
}

// text is the value as the file would have it; empty: nothing is set.
func (n note) text() string {
	switch v := n.value.(type) {
	case nil:
		return ""
	case time.Duration:
		return shortest(v)
	case []lb.StatusRange:
		words := make([]string, len(v))
		for i, r := range v {
			words[i] = r.String()
		}
		return strings.Join(words, ",")
	case []lb.Protocol:
		words := make([]string, len(v))
		for i, p := range v {
			words[i] = p.String()
		}
		return "[" + strings.Join(words, ", ") + "]"
	case netip.Addr, netip.AddrPort:
		if reflect.ValueOf(v).IsZero() {
			return ""
		}
	case []byte:
		return string(v)
	case lb.HashFields:
		if v == lb.HashFlow {
			return "flow"
		}
	}
	return fmt.Sprint(n.value)
}

// shortest is a duration without parts that are nothing: 1h in the place of 1h0m0s.
func shortest(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (r *report) note(p place, n note) {
	if r.notes == nil {
		r.notes = map[string]note{}
	}
	r.notes[p.path] = n
}

// add reports an error that has its path already. Of the place only the line and the
// file count.
func (r *report) add(at place, format string, args ...any) {
	r.list = append(r.list, &Error{File: cmp.Or(at.file, r.file), Line: at.line, Err: fmt.Errorf(format, args...)})
}

// at reports an error about what stands at p: "cluster.size is missing: ...".
func (r *report) at(p place, format string, args ...any) {
	r.add(p, "%s "+format, append([]any{cmp.Or(p.path, "the file")}, args...)...)
}

// inside reports an error about something in the mapping at p, whose path is
// therefore set apart: "services[0] "web": check: unknown key ...".
func (r *report) inside(p place, line int, format string, args ...any) {
	at := place{file: p.file, line: line}
	if p.path == "" {
		r.add(at, format, args...)
		return
	}
	r.add(at, "%s: "+format, append([]any{strings.TrimSuffix(p.path, ":")}, args...)...)
}

// rank puts the file itself before those that it names.
func (r *report) rank(e *Error) string {
	if e.File == r.file {
		return ""
	}
	return e.File
}

// errors is the report sorted by line; what stands in one line keeps its order.
func (r *report) errors() error {
	if len(r.list) == 0 {
		return nil
	}
	slices.SortStableFunc(r.list, func(a, b *Error) int {
		return cmp.Or(strings.Compare(r.rank(a), r.rank(b)), cmp.Compare(a.Line, b.Line))
	})
	return r.list
}
