// Command generate makes what is published of the configuration's shape, which the
// comments and tags of its Go types describe: a JSON Schema for editors, and the
// reference document.
//
// It is a walk over the syntax tree. Libraries that make schemas by reflection find
// nothing here: to Go every value of the shape is of one type, and comments are
// not there at run time.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := generate(".", ".."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// generate reads the package config in from, and writes below to.
func generate(from, to string) error {
	files, err := made(from)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(to, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// made is what is generated, by its path in the tree.
func made(from string) (map[string][]byte, error) {
	node, err := read(from, "file")
	if err != nil {
		return nil, err
	}
	backend, err := read(from, "backendFile")
	if err != nil {
		return nil, err
	}
	included, err := read(from, "includedFile")
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"deploy/halfproxy.schema.json": schema("/etc/halfproxy/halfproxy.yaml", node),
		"deploy/services.schema.json":  schema("/etc/halfproxy/services.d/*.yaml", included),
		"deploy/backend.schema.json":   schema("/etc/halfproxy/backend.yaml", backend),
		"docs/configuration.md":        document(node, backend),
	}, nil
}
