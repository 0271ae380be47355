package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/halfproxy/halfproxy/internal/words"
)

// decode fills the shape from YAML. It walks the syntax tree itself, as the
// library's own decoder stops at the first error and forgets the lines. False
// is a file that is no YAML at all; other errors leave a shape whose remaining
// parts are worth checking.
func decode(r *report, data []byte) (*file, bool) {
	shape := new(file)
	return shape, decodeInto(r, data, shape)
}

func decodeInto(r *report, data []byte, shape part) bool { return decodeIncluded(r, "", data, shape) }

// decodeIncluded is decodeInto for a file that the file includes.
func decodeIncluded(r *report, name string, data []byte, shape part) bool {
	d := decoder{report: r, name: name, anchors: map[string]ast.Node{}}
	root, ok := d.document(data)
	if ok {
		d.fill(shape, root, place{file: name, line: 1})
	}
	return ok
}

type decoder struct {
	*report
	name    string // as places have it
	anchors map[string]ast.Node
}

// document gives the root of the only document in data, nil if it is empty.
func (d *decoder) document(data []byte) (ast.Node, bool) {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // some editors' byte order mark
	if bytes.IndexByte(data, 0) >= 0 {
		d.add(place{file: d.name, line: 1}, "not YAML: there are NUL bytes in it: is it another file, or UTF-16? Write it in UTF-8")
		return nil, false
	}
	tree, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, message := 1, err.Error()
		if syntax, ok := errors.AsType[yaml.Error](err); ok {
			message = syntax.GetMessage()
			if token := syntax.GetToken(); token != nil && token.Position != nil {
				line = token.Position.Line
			}
		}
		message = strings.NewReplacer("\t", "<tab>", "\n", " ", "\r", " ").Replace(message)
		d.add(place{file: d.name, line: line}, "not YAML: %s: look at the indentation and the quotes here and in the line above", message)
		return nil, false
	}
	var root ast.Node
	for _, document := range tree.Docs {
		switch _, directive := document.Body.(*ast.DirectiveNode); {
		case document.Body == nil || directive:
		case root == nil:
			root = document.Body
		default:
			d.add(place{file: d.name, line: line(document.Body)}, "a second document begins: a file holds one, remove the --- or ... before it")
			return nil, false
		}
	}
	return root, true
}

// part is a part of the shape: a section, a list, a value.
type part interface {
	put(place)
	here() place
}

// fill reads n into target. Without n it still walks the shape, so that what
// is missing knows its place.
func (d *decoder) fill(target part, n ast.Node, at place) {
	if n != nil {
		at.state = given
		if n = d.resolve(n, at); n == nil {
			at.state = broken
		}
	}
	target.put(at)
	switch target := target.(type) {
	case *value:
		d.scalar(target, n)
	case *pairs:
		d.pairs(target, n, at)
	case interface{ grow() part }:
		d.sequence(target, n, at)
	default:
		d.mapping(target, n, at)
	}
}

// scalar keeps the text as it was written: 1.10 is not 1.1.
func (d *decoder) scalar(target *value, n ast.Node) {
	switch n := n.(type) {
	case nil:
	case *ast.StringNode:
		target.text = n.Value
	case *ast.LiteralNode:
		target.text = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		target.text, target.kind = n.GetToken().Value, number
	case *ast.BoolNode:
		target.text, target.kind = n.GetToken().Value, boolean
	default:
		d.at(target.place, "is %s, it has to be a single value", noun(n))
		target.state = broken
	}
}

func (d *decoder) sequence(target interface{ grow() part }, n ast.Node, at place) {
	switch n := n.(type) {
	case nil:
	case *ast.SequenceNode:
		for i, entry := range n.Values {
			d.fill(target.grow(), entry, at.entry(i, line(entry)))
		}
	default:
		if l, ok := target.(*listOrValue); ok && noun(n) == aValue {
			d.fill(l.grow(), n, at)
			return
		}
		d.at(at, "is %s, it has to be a list: begin each entry with a dash", noun(n))
		at.state = broken
		target.(part).put(at)
	}
}

// pairsOf gives the entries of a mapping, and none of what is no mapping.
func (d *decoder) pairsOf(n ast.Node, at *place) []*ast.MappingValueNode {
	switch n := n.(type) {
	case nil:
	case *ast.MappingNode:
		return n.Values
	default:
		d.at(*at, "is %s, it has to be a mapping: write key: value", noun(n))
		at.state = broken
	}
	return nil
}

// pairs reads a mapping whose keys are the operator's own.
func (d *decoder) pairs(target *pairs, n ast.Node, at place) {
	entries := d.pairsOf(n, &at)
	target.put(at)
	lines := map[string]int{}
	for _, entry := range entries {
		key := entry.Key.GetToken().Value
		if first, twice := lines[key]; twice {
			d.inside(at, line(entry.Key), "key %q is given twice: remove this one or that in line %d", clip(key), first)
			continue
		}
		lines[key] = line(entry.Key)
		child := at.key(clip(key))
		child.line = line(entry.Key)
		var v value
		d.fill(&v, entry.Value, child)
		target.names, target.values = append(target.names, key), append(target.values, v)
	}
}

func (d *decoder) mapping(target part, n ast.Node, at place) {
	pairs := d.pairsOf(n, &at)
	if at.isEntry() {
		at = at.label(name(pairs))
	}
	target.put(at)

	shape := reflect.ValueOf(target).Elem()
	fields := keys(shape.Type())
	found := map[string]*ast.MappingValueNode{}
	for _, pair := range pairs {
		key := pair.Key.GetToken().Value
		switch first, twice := found[key]; {
		case twice:
			d.inside(at, line(pair.Key), "key %q is given twice: remove this one or that in line %d", clip(key), line(first.Key))
		case pair.Key.Type() == ast.MergeKeyType:
			d.inside(at, line(pair.Key), "a merge (<<) is not YAML 1.2: write the keys out")
		case !slices.Contains(fields, key):
			d.inside(at, line(pair.Key), "unknown key %q: %s", clip(key), advice(key, fields))
		default:
			found[key] = pair
		}
	}
	for i, key := range fields {
		child := at.key(key)
		var value ast.Node
		if pair := found[key]; pair != nil {
			child.line, value = line(pair.Key), pair.Value
		}
		d.fill(shape.Field(i+1).Addr().Interface().(part), value, child)
	}
}

// keys lists the keys of a section, whose first field is section itself.
func keys(t reflect.Type) []string {
	var list []string
	for i := 1; i < t.NumField(); i++ {
		list = append(list, t.Field(i).Tag.Get("yaml"))
	}
	return list
}

// name is what an operator calls a mapping in a list: its name, else its address or prefix.
func name(pairs []*ast.MappingValueNode) string {
	for _, key := range []string{"name", "address", "prefix"} {
		for _, pair := range pairs {
			if value, ok := pair.Value.(*ast.StringNode); ok && pair.Key.GetToken().Value == key {
				return value.Value
			}
		}
	}
	return ""
}

// resolve follows an anchor or an alias; what stands for nothing it reports,
// and gives nil. Aliases cannot make the walk endless, as it goes no deeper
// than the shape.
func (d *decoder) resolve(n ast.Node, at place) ast.Node {
	if anchor, ok := n.(*ast.AnchorNode); ok {
		n = anchor.Value
		d.anchors[anchor.Name.GetToken().Value] = n
	}
	if alias, ok := n.(*ast.AliasNode); ok {
		name := alias.Value.GetToken().Value
		if n, ok = d.anchors[name]; !ok {
			d.at(at, "is *%s, and nothing further up is marked &%s: give the value itself", name, name)
			return nil
		}
	}
	switch n := n.(type) {
	case *ast.TagNode:
		d.at(at, "has the tag %s: remove it, types are known here", n.GetToken().Value)
		return nil
	case *ast.NullNode:
		d.at(at, "is empty: give it a value or remove it")
		return nil
	}
	return n
}

// noun is what a person calls a node of a type that is not wanted.
func noun(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return aValue
}

const aValue = "a single value"

func line(n ast.Node) int { return n.GetToken().Position.Line }

// advice is the remedy for an unknown key: the known one that was meant, else
// all that there are.
func advice(key string, known []string) string {
	if meant, near := words.Nearest(key, known); near {
		return fmt.Sprintf("did you mean %q?", meant)
	}
	if len(known) == 1 {
		return fmt.Sprintf("only %q is known here", known[0])
	}
	return "known here are " + strings.Join(known, ", ")
}
