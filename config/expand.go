package config

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// expanded is a key of the file, with what holds where the file is silent.
type expanded struct {
	key    string
	at     place
	silent bool // it is the default

	yaml   string // of a value or a list of them; empty: nothing is set
	value  string // the same, however it was written
	secret []byte // a digest of what it stands for, which is not to be shown

	sections [][]expanded // a mapping; or the entries of a list
	places   []place      // of the entries
}

// expand gives what holds of all keys of a section, in their order.
func (r *report) expand(section reflect.Value) []expanded {
	var all []expanded
	for i := 1; i < section.NumField(); i++ {
		tag := section.Type().Field(i).Tag
		e := expanded{key: tag.Get("yaml")}
		if e.key == "include" {
			continue // what it names is among the services
		}
		holder := section.Field(i).Addr().Interface().(part)
		e.at = holder.here()
		switch f := holder.(type) {
		case *value:
			r.expandValue(&e, *f)
			if tag.Get("kind") == "path" && f.file != "" && f.state == given {
				e.yaml = plain(fromAnywhere(*f))
			}
		case *list[value]:
			r.expandList(&e, *f)
		case *listOrValue:
			r.expandList(&e, f.list)
		case *pairs:
			expandPairs(&e, *f)
		case interface {
			entries() ([]reflect.Value, []place)
		}:
			var entries []reflect.Value
			entries, e.places = f.entries()
			for _, entry := range entries {
				e.sections = append(e.sections, r.expand(entry))
			}
			if e.at.state == given && len(entries) == 0 {
				e.yaml = "[]"
			}
		default:
			keys := r.expand(section.Field(i))
			if e.at.state == given || slices.ContainsFunc(keys, func(k expanded) bool { return k.yaml != "" }) {
				e.sections = [][]expanded{keys}
			}
		}
		if types := tag.Get("types"); types != "" && e.at.state == absent && e.yaml == "" && !slices.Contains(strings.Split(types, ","), r.checkType(all)) {
			continue // of no use to this check
		}
		all = append(all, e)
	}
	return all
}

// checkType is the type of a check whose first keys these are.
func (r *report) checkType(keys []expanded) string {
	for _, k := range keys {
		if k.key == "type" {
			return k.value
		}
	}
	return ""
}

func (r *report) expandValue(e *expanded, v value) {
	n := r.notes[v.path]
	e.secret = r.secrets[v.path]
	switch {
	case v.state == given:
		e.yaml, e.value = written(v), cmp.Or(n.text(), v.text)
	case n.holds():
		e.yaml, e.value, e.silent = written(n.said()), n.text(), true
	}
}

// fromAnywhere is the path in a file that is included, as other files can have it.
func fromAnywhere(v value) string {
	if filepath.IsAbs(v.text) {
		return v.text
	}
	path := filepath.Join(filepath.Dir(v.file), v.text)
	if absolute, err := filepath.Abs(path); err == nil {
		return absolute
	}
	return path
}

func (r *report) expandList(e *expanded, l list[value]) {
	if n, noted := r.notes[l.path]; l.state == absent {
		if noted && n.holds() {
			e.yaml, e.value, e.silent = n.text(), n.text(), true
		}
		return
	}
	var yaml, values []string
	for _, v := range l.items {
		yaml = append(yaml, written(v))
		values = append(values, cmp.Or(r.notes[v.path].text(), v.text))
	}
	e.yaml, e.value = strings.Join(yaml, ", "), strings.Join(values, ", ")
	if len(l.items) != 1 || l.items[0].path != l.path {
		e.yaml = "[" + e.yaml + "]"
	}
}

// expandPairs gives headers, whose values may be secrets to all but the file.
func expandPairs(e *expanded, p pairs) {
	if p.state != given {
		return
	}
	var keys []expanded
	for i, v := range p.values {
		keys = append(keys, expanded{key: plain(p.names[i]), at: v.place, yaml: written(v), secret: digest([]byte(v.text))})
	}
	e.sections = [][]expanded{keys}
}

// entries gives the sections of a list, and where they stand.
func (l *list[T]) entries() (sections []reflect.Value, places []place) {
	for i := range l.items {
		sections = append(sections, reflect.ValueOf(&l.items[i]).Elem())
		places = append(places, any(&l.items[i]).(part).here())
	}
	return sections, places
}

// holds tells whether a note is of something that the file could say.
func (n note) holds() bool {
	v := n.said()
	return v.text != "" && (n.takes == nil || n.takes(v) == nil)
}

// said is the value as if the file had it.
func (n note) said() value {
	v := value{text: n.text()}
	if _, err := strconv.ParseInt(v.text, 10, 64); err == nil {
		v.kind = number
	} else if v.text == "true" || v.text == "false" {
		v.kind = boolean
	}
	return v
}

// written is a value as the file has it, or might have it.
func written(v value) string {
	if v.kind != text {
		return v.text
	}
	return plain(v.text)
}

// plain is text without quotes, where YAML takes it for the same text everywhere.
func plain(text string) string {
	tree, err := parser.ParseBytes([]byte("x: ["+text+"]"), 0)
	if err == nil && len(tree.Docs) == 1 {
		if m, ok := tree.Docs[0].Body.(*ast.MappingNode); ok && len(m.Values) == 1 {
			if l, ok := m.Values[0].Value.(*ast.SequenceNode); ok && len(l.Values) == 1 {
				if s, ok := l.Values[0].(*ast.StringNode); ok && s.Value == text && s.GetToken().Value == text {
					return text
				}
			}
		}
	}
	return strconv.Quote(text)
}

func writeAll(out io.Writer, keys []expanded) error {
	buffered := bufio.NewWriter(out)
	writeExpanded(buffered, keys, "")
	return buffered.Flush()
}

// writeExpanded writes keys as YAML, with a word on what the file does not say itself.
func writeExpanded(out io.Writer, keys []expanded, indent string) {
	var unset []string
	for _, k := range keys {
		switch {
		case k.places != nil:
			fmt.Fprintf(out, "%s%s:\n", indent, k.key)
			for i, entry := range k.sections {
				if k.places[i].file != "" {
					fmt.Fprintf(out, "%s  # from %s\n", indent, k.places[i].file)
				}
				var lines strings.Builder
				writeExpanded(&lines, entry, indent+"    ")
				fmt.Fprintf(out, "%s  - %s", indent, strings.TrimPrefix(lines.String(), indent+"    "))
			}
		case k.sections != nil && !slices.ContainsFunc(k.sections[0], expanded.shown):
			fmt.Fprintf(out, "%s%s: {}\n", indent, k.key)
		case k.sections != nil:
			fmt.Fprintf(out, "%s%s:\n", indent, k.key)
			writeExpanded(out, k.sections[0], indent+"  ")
		case k.yaml != "":
			said := ""
			if k.silent {
				said = "  # default"
			}
			fmt.Fprintf(out, "%s%s: %s%s\n", indent, k.key, k.yaml, said)
		default:
			unset = append(unset, k.key)
		}
	}
	if unset != nil {
		fmt.Fprintf(out, "%s# not set: %s\n", indent, strings.Join(unset, ", "))
	}
}

func (e expanded) shown() bool { return e.yaml != "" || e.sections != nil }

// Setting is what holds of a key, or that an entry of a list is there.
type Setting struct {
	Path   string // services "web": check.interval
	Value  string
	Entry  bool   // Path is of an entry, such as services "web"
	Secret []byte // a digest of what is not to be shown
}

// index is an entry's number in a path, where its name follows.
var index = regexp.MustCompile(`\[\d+\]( ")`)

// settings lists what holds, in the order of the file.
func settings(keys []expanded) []Setting {
	var list []Setting
	for _, k := range keys {
		for i, section := range k.sections {
			if k.places != nil {
				at := strings.TrimSuffix(k.places[i].path, ":")
				list = append(list, Setting{Path: index.ReplaceAllString(at, "$1"), Value: title(section), Entry: true})
			}
			list = append(list, settings(section)...)
		}
		if k.sections == nil && (k.value != "" || k.secret != nil) {
			list = append(list, Setting{Path: index.ReplaceAllString(k.at.path, "$1"), Value: k.value, Secret: k.secret})
		}
	}
	return list
}

// title says what an entry is about, beside its name.
func title(section []expanded) string {
	var words []string
	for _, k := range section {
		if slices.Contains([]string{"address", "prefix", "vips", "ports"}, k.key) && k.value != "" {
			words = append(words, k.value)
		}
	}
	return strings.Join(words, ", ")
}
