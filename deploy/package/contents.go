package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/goreleaser/nfpm/v2/files"
)

// file is something that a package puts into place.
type file struct {
	from, to string
	mode     fs.FileMode
	kind     kind
}

type kind int

const (
	plain   kind = iota
	conf         // an operator's own changes stay
	onDeb        // in the Debian package alone
	onRPM        // in the RPM alone
	onlyDir      // a folder that is ours, to be read by the group halfproxy
)

const docs = "/usr/share/doc/halfproxy/"

// contents is all that a package has, but for what it takes binaries to know.
func (r release) contents(arch string) ([]file, error) {
	tree := func(name string) string { return filepath.Join(r.source, name) }
	all := []file{
		{r.binary(arch), "/usr/bin/halfproxy", 0o755, plain},
		{tree("deploy/halfproxy.service"), "/usr/lib/systemd/system/halfproxy.service", 0o644, plain},
		{tree("deploy/halfproxy-backend.service"), "/usr/lib/systemd/system/halfproxy-backend.service", 0o644, plain},
		{tree("deploy/halfproxy.default"), "/etc/default/halfproxy", 0o644, conf},
		{"", "/etc/halfproxy", 0o750, onlyDir},
		{tree("deploy/package/copyright"), docs + "copyright", 0o644, plain},
	}
	for _, schema := range []string{"halfproxy.schema.json", "services.schema.json", "backend.schema.json"} { // where editors are told to look
		all = append(all, file{tree("deploy/" + schema), "/usr/share/halfproxy/" + schema, 0o644, plain})
	}
	// Documents lie as they do in the tree, so that links from one to another work.
	for _, pattern := range []string{
		"*.md", "LICENSE", "LICENSES/*", "docs/*.*", "deploy/*.yaml", "deploy/sysctl.conf",
		"deploy/prometheus/*", "deploy/grafana/*", "deploy/containerlab/*",
	} {
		paths, err := filepath.Glob(tree(pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			to := filepath.Join(docs, filepath.Dir(pattern), filepath.Base(path))
			all = append(all, file{path, to, 0o644, plain})
		}
	}
	return all, nil
}

// printed is what the program says of itself: manual pages, and completions for shells.
func (r release) printed(dir string) ([]file, error) {
	native := r.binary(runtime.GOARCH)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var all []file
	for _, shell := range []struct {
		name string
		to   []file
	}{
		{"bash", []file{{to: "/usr/share/bash-completion/completions/halfproxy"}}},
		{"zsh", []file{{to: "/usr/share/zsh/vendor-completions/_halfproxy", kind: onDeb}, {to: "/usr/share/zsh/site-functions/_halfproxy", kind: onRPM}}},
		{"fish", []file{{to: "/usr/share/fish/vendor_completions.d/halfproxy.fish"}}},
	} {
		script, err := exec.Command(native, "completion", shell.name).Output()
		if err != nil {
			return nil, fmt.Errorf("%s completion %s: %w", native, shell.name, err)
		}
		from := filepath.Join(dir, "completion."+shell.name)
		if err := os.WriteFile(from, script, 0o644); err != nil {
			return nil, err
		}
		for _, f := range shell.to {
			all = append(all, file{from, f.to, 0o644, f.kind})
		}
	}
	pages, err := r.pages(filepath.Join(dir, "man"))
	return append(all, pages...), err
}

// pages has the manual pages, compressed as both distributions want them.
func (r release) pages(dir string) ([]file, error) {
	native := r.binary(runtime.GOARCH)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if out, err := exec.Command(native, "man", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s man: %w: %s", native, err, out)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.[1-9]"))
	if err != nil || len(paths) == 0 {
		return nil, errors.Join(fmt.Errorf("%s man %s wrote no page", native, dir), err)
	}
	var all []file
	for _, path := range paths {
		page, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		err = create(path+".gz", func(w io.Writer) error {
			z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
			if err != nil {
				return err
			}
			_, err = z.Write(page)
			return errors.Join(err, z.Close())
		})
		if err != nil {
			return nil, err
		}
		all = append(all, file{path + ".gz", "/usr/share/man/man" + path[len(path)-1:] + "/" + filepath.Base(path) + ".gz", 0o644, plain})
	}
	return all, nil
}

// content is how nfpm is told of a file. Nothing of the file on this machine's disk
// matters but what is in it.
func (r release) content(f file) *files.Content {
	c := &files.Content{
		Source: f.from, Destination: f.to, Type: files.TypeFile,
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: f.mode, MTime: r.made},
	}
	switch f.kind {
	case conf:
		c.Type = files.TypeConfigNoReplace
	case onDeb:
		c.Packager = "deb"
	case onRPM:
		c.Packager = "rpm"
	case onlyDir:
		c.Type = files.TypeDir
		c.FileInfo.Group = "halfproxy"
	}
	return c
}
