package main

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// module is a library that is part of the binary.
type module struct {
	path, version, sum string
	notices            []notice
}

// notice is what its authors ask to come with every copy of their work.
type notice struct {
	name     string
	text     []byte
	licenses []string // as SPDX names them
}

var noticeName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents|authors)([.-].*)?$`)

// modules tells what the binary was linked of, by its own account, with Go itself in
// front.
func (r release) modules(arch string, sources map[string]string) ([]module, error) {
	info, err := buildinfo.ReadFile(r.binary(arch))
	if err != nil {
		return nil, err
	}
	std := module{path: "std", version: info.GoVersion}
	if std.notices, err = notices(sources[std.path]); err != nil {
		return nil, err
	}
	all := []module{std}
	for _, dep := range info.Deps {
		m := module{path: dep.Path, version: dep.Version, sum: dep.Sum}
		if m.notices, err = notices(sources[dep.Path+"@"+dep.Version]); err != nil {
			return nil, fmt.Errorf("%s %s: %w", m.path, m.version, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// sources are the folders of every module that the tree requires, and of std.
func (r release) sources() (map[string]string, error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	list := exec.Command("go", "list", "-m", "-json", "all")
	list.Dir, list.Stderr = r.source, os.Stderr
	out, err := list.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := list.Start(); err != nil {
		return nil, err
	}
	dirs := map[string]string{"std": strings.TrimSpace(string(goroot))}
	for decoder := json.NewDecoder(out); ; {
		var m struct{ Path, Version, Dir string }
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		dirs[m.Path+"@"+m.Version] = m.Dir
	}
	return dirs, list.Wait()
}

// notices reads the files of a module's root that say on which terms it is to be had.
func notices(dir string) ([]notice, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for its licence: %w", err)
	}
	var all []notice
	licensed := false
	for _, e := range entries {
		if e.IsDir() || !noticeName.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		n := notice{name: e.Name(), text: text}
		for _, match := range licensecheck.Scan(text).Match {
			if !slices.Contains(n.licenses, match.ID) {
				n.licenses = append(n.licenses, match.ID)
			}
		}
		licensed = licensed || len(n.licenses) > 0
		all = append(all, n)
	}
	if !licensed {
		return nil, errors.New("no licence that is known in " + dir)
	}
	return all, nil
}

// writeNotices writes all notices into one file.
func writeNotices(path string, modules []module) error {
	return create(path, func(w io.Writer) error {
		if _, err := fmt.Fprintln(w, "The program halfproxy contains what follows, on these terms."); err != nil {
			return err
		}
		for _, m := range modules {
			for _, n := range m.notices {
				if _, err := fmt.Fprintf(w, "\n%s\n%s %s: %s\n\n%s\n", "----------------------------------------", m.path, m.version, n.name, n.text); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
