package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

// key is a key of a mapping.
type key struct {
	name     string
	doc      string // without what the default is
	fallback string // in words, of a default that is not always the same
	literal  string // a default that is
	form     form
	kind     kind     // of scalars
	words    []string // of kind word
	least    string
	most     string
	required bool
	unless   string // the key without which it is required
	some     bool
	types    []string // of checks that have a use for it; none: all
	keys     []key    // of mappings
}

// form is how values are put together.
type form uint8

const (
	scalar form = iota
	listOfScalars
	listOrScalar
	pairs
	mapping
	listOfMappings
)

// read gives the keys of the type called root in the package config, in dir.
func read(dir, root string) ([]key, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	types := map[string]*ast.StructType{}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					types[spec.Name.Name] = s
				}
			}
			return true
		})
	}
	return keysOf(types, root)
}

func keysOf(types map[string]*ast.StructType, name string) ([]key, error) {
	s, known := types[name]
	if !known {
		return nil, fmt.Errorf("config has no type %s", name)
	}
	var keys []key
	for _, field := range s.Fields.List {
		if len(field.Names) == 0 {
			continue // section
		}
		k, err := keyOf(types, field)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", name, field.Names[0].Name, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func keyOf(types map[string]*ast.StructType, field *ast.Field) (key, error) {
	if field.Tag == nil {
		return key{}, errors.New("has no tag: say what it holds, as config/shape.go tells")
	}
	text, err := strconv.Unquote(field.Tag.Value)
	if err != nil {
		return key{}, err
	}
	tag := reflect.StructTag(text)
	k := key{
		name: tag.Get("yaml"), literal: tag.Get("default"), words: split(tag.Get("words")), types: split(tag.Get("types")),
		required: tag.Get("required") == "true", unless: tag.Get("unless"), some: tag.Get("some") == "true",
	}
	k.least, k.most, _ = strings.Cut(tag.Get("range"), "..")
	k.doc, k.fallback, _ = strings.Cut(strings.Join(strings.Fields(field.Doc.Text()), " "), "Default: ")
	k.doc, k.fallback = strings.TrimSpace(k.doc), strings.TrimSuffix(k.fallback, ".")
	if field.Doc == nil {
		return key{}, errors.New("has no comment: say what it means")
	}

	element, listed := field.Type, false
	if list, ok := field.Type.(*ast.IndexExpr); ok {
		element, listed = list.Index, true
	}
	switch name := element.(*ast.Ident).Name; name {
	case "pairs":
		k.form = pairs
	case "value", "listOrValue":
		switch {
		case listed:
			k.form = listOfScalars
		case name == "listOrValue":
			k.form = listOrScalar
		}
		var known bool
		if k.kind, known = kinds[tag.Get("kind")]; !known {
			return key{}, fmt.Errorf("kind %q is unknown: take one of config/generate/kinds.go, or add it there", tag.Get("kind"))
		}
		if (k.kind.name == word.name) != (len(k.words) > 0) {
			return key{}, errors.New("kind word has words, and no other kind has")
		}
	default:
		k.form = mapping
		if listed {
			k.form = listOfMappings
		}
		if k.keys, err = keysOf(types, name); err != nil {
			return key{}, err
		}
	}
	return k, nil
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
