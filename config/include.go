package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// include adds the services of the files that the file includes to its own, in the
// order of include, and of their names where it is a pattern.
func (c *checker) include(f *file) {
	if f.Include.state == absent {
		return
	}
	some(c.report, f.Include.list, "name a file, or a pattern such as services.d/*.yaml")
	patterns, places := entries(c.report, f.Include.list, parseText)
	if c.host.beside == nil {
		return
	}
	var read []string
	for i, pattern := range patterns {
		for _, path := range c.included(pattern, places[i]) {
			if slices.Contains(read, path) {
				continue
			}
			read = append(read, path)
			data, err := os.ReadFile(path)
			if err != nil {
				c.at(places[i], "%q has a file that cannot be read: %w", pattern, err)
				continue
			}
			shape := new(includedFile)
			if !decodeIncluded(c.report, path, data, shape) {
				continue
			}
			if shape.Services.state == absent {
				c.at(shape.Services.place, "is missing: list them, or write [] for none")
			}
			f.Services.items = append(f.Services.items, shape.Services.items...)
		}
	}
}

// included lists the files of a pattern. It may match none, in a folder that is there.
// What begins with a dot is an editor's.
func (c *checker) included(pattern string, at place) []string {
	full := c.host.beside("", pattern)
	paths, err := filepath.Glob(full)
	if err != nil {
		c.at(at, "%q is no pattern: * and ? stand for what is in names, [ ] for a choice of letters, with a backslash all are themselves", pattern)
		return nil
	}
	if len(paths) == 0 {
		if _, err := os.Stat(filepath.Dir(full)); !strings.ContainsAny(pattern, "*?[") || errors.Is(err, fs.ErrNotExist) {
			c.at(at, "%q is no file that there is: make it, or correct the path", pattern)
		}
	}
	return slices.DeleteFunc(paths, func(path string) bool { return strings.HasPrefix(filepath.Base(path), ".") })
}
