// Command package makes what halfproxy is installed by, of binaries that are built
// already: a Debian package, an RPM and a software bill of materials for each
// architecture, an OCI image of all of them, and a file with the sums of all these.
// The same sources, version and time make the same bytes.
//
// `make packages` calls it. What goes where is in contents.go, what happens at
// installation and removal in scripts.
package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// release is what all that is made has in common.
type release struct {
	source  string // root of the tree
	bin     string // has linux-ARCH/halfproxy, one of which runs here
	version string // as the binaries say it
	made    time.Time
	out     string
}

func (r release) binary(arch string) string {
	return filepath.Join(r.bin, "linux-"+arch, "halfproxy")
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "package: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var r release
	var archs string
	flags := flag.NewFlagSet("package", flag.ContinueOnError)
	flags.StringVar(&r.source, "source", "../..", "root of the tree")
	flags.StringVar(&r.bin, "bin", "../../bin", "folder with linux-ARCH/halfproxy, that of this machine among them, since it prints the manual pages; packages come into packages there, where nothing else stays")
	flags.StringVar(&r.version, "version", "devel", "version, as git describe says it")
	flags.StringVar(&archs, "architectures", "amd64 arm64", "what to make packages for")
	if err := flags.Parse(args); err != nil {
		return err
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w: set it to the time of the last commit, in seconds since 1970", err)
	}
	r.made = time.Unix(epoch, 0).UTC()
	r.out = filepath.Join(r.bin, "packages")

	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	return r.make(strings.Fields(archs))
}

// make makes everything, for each architecture.
func (r release) make(archs []string) (err error) {
	tmp, err := os.MkdirTemp("", "halfproxy-package")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	printed, err := r.printed(filepath.Join(tmp, "printed"))
	if err != nil {
		return err
	}
	sources, err := r.sources()
	if err != nil {
		return err
	}
	for _, arch := range archs {
		modules, err := r.modules(arch, sources)
		if err != nil {
			return err
		}
		notices := filepath.Join(tmp, arch+"-third-party")
		if err := writeNotices(notices, modules); err != nil {
			return err
		}
		if err := r.packages(arch, append(slices.Clone(printed), file{notices, "/usr/share/doc/halfproxy/third-party-licenses", 0o644, plain})); err != nil {
			return fmt.Errorf("for %s: %w", arch, err)
		}
		if err := r.sbom(arch, modules); err != nil {
			return fmt.Errorf("bill of materials for %s: %w", arch, err)
		}
	}
	if err := r.image(archs, filepath.Join(tmp, "image")); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return sums(r.out)
}

// sums writes SHA256SUMS, in the form that sha256sum --check reads.
func sums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, e := range entries {
		sum, err := sum256(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%x  %s\n", sum, e.Name())
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(b.String()), 0o644)
}

func sum256(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// create makes a file and has write fill it.
func create(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
