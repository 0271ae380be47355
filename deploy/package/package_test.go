package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"
)

const version = "v1.2.3-4-gabcdef0"

// made is `make packages` for this machine, once for all tests.
var made = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "halfproxy-packages")
	if err != nil {
		return "", err
	}
	return dir, makePackages("../..", dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := made(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// makePackages has what is built below dir.
func makePackages(source, dir string) error {
	cmd := exec.Command("make", "--no-print-directory", "-C", source, "packages",
		"BIN="+dir, "VERSION="+version, "ARCHS="+runtime.GOARCH, "SOURCE_DATE_EPOCH=1700000000")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "MAKEFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}

// product is the one thing in packages whose name ends so.
func product(t *testing.T, dir, suffix string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "packages", "*"+suffix))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%q in packages: %q (%v), want one", suffix, paths, err)
	}
	return paths[0]
}

func packages(t *testing.T) string {
	t.Helper()
	dir, err := made()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestVersions(t *testing.T) {
	at := time.Date(2026, 11, 26, 6, 1, 11, 0, time.UTC)
	for _, c := range []struct{ git, want string }{
		{"v1.2.3", "1.2.3"},
		{"v1.2.3-4-gabcdef0", "1.2.3+4.gabcdef0"},
		{"v1.2.3-4-gabcdef0-dirty", "1.2.3+4.gabcdef0.dirty"},
		{"v1.2.3-dirty", "1.2.3+dirty"},
		{"v1.2.3-rc1", "1.2.3~rc1"},
		{"v1.2.3-rc1-4-gabcdef0", "1.2.3~rc1.4.gabcdef0"},
		{"abcdef0", "0~20261126060111.abcdef0"},
		{"abcdef0-dirty", "0~20261126060111.abcdef0.dirty"},
		{"devel", "0~20261126060111.devel"},
	} {
		if got := packageVersion(c.git, at); got != c.want {
			t.Errorf("%s: got %s, want %s", c.git, got, c.want)
		}
	}
	need(t, "dpkg")
	for older, newer := range map[string]string{
		"0~20261126060111.fff": "0~20261126060112.aaa", "0~20261126060112.aaa": "0.1.0",
		"1.2.3~rc1": "1.2.3", "1.2.3": "1.2.3+1.gabc", "1.2.3+4.gabcdef0": "1.2.4~rc1",
	} {
		command(t, "dpkg", "--compare-versions", older, "lt", newer)
	}
}

func TestTheSameSourcesMakeTheSameBytesElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("builds twice")
	}
	here := packages(t)
	source := filepath.Join(t.TempDir(), "elsewhere", "halfproxy")
	listed := command(t, "git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.TrimRight(listed, "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join("../..", name))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed and not committed
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	there := t.TempDir()
	if err := makePackages(source, there); err != nil {
		t.Fatal(err)
	}
	one, err := os.ReadFile(product(t, here, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(product(t, there, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, other) {
		t.Errorf("sums here:\n%selsewhere:\n%s", one, other)
	}
	if n := bytes.Count(one, []byte("\n")); n != 4 {
		t.Errorf("%d files, want a .deb, an .rpm, an image and a bill of materials:\n%s", n, one)
	}
	check := exec.Command("sha256sum", "--check", "--quiet", "SHA256SUMS")
	check.Dir = filepath.Join(here, "packages")
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// root is this machine's file system with a layer on top that takes all changes: a
// machine to install on. It is seen by the calling thread and what it starts.
func root(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread() // for ever: the thread, and its mounts, end with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("no mount namespace of its own: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "root")
	if err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir=/,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		t.Skipf("no overlay file system: %v", err)
	}
	for _, name := range []string{"dev", "proc"} {
		if err := unix.Mount("/"+name, filepath.Join(merged, name), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // before the folder is removed, and by the same thread
		for _, name := range []string{"root/dev", "root/proc", "root", ""} {
			if err := unix.Unmount(filepath.Join(dir, name), unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", name, err)
			}
		}
	})

	// A systemd that only notes down what is asked of it, and whose units all run.
	write(t, filepath.Join(merged, "usr/bin/systemctl"), "#!/bin/sh\necho \"$*\" >>/systemctl.log\n", 0o755)
	if err := os.MkdirAll(filepath.Join(merged, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(merged, "systemctl.log"), "", 0o644)
	// Documents are left out in some containers.
	if err := os.RemoveAll(filepath.Join(merged, "etc/dpkg/dpkg.cfg.d")); err != nil {
		t.Fatal(err)
	}
	return merged
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// asked is what systemd was asked since the last time.
func asked(t *testing.T, root string) []string {
	t.Helper()
	path := filepath.Join(root, "systemctl.log")
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(log)), "\n")
}

// installed looks at what both kinds of packages have to have done.
func installed(t *testing.T, root string) {
	t.Helper()
	if got, want := command(t, "chroot", root, "/usr/bin/halfproxy", "--version"), "halfproxy version "+version+"\n"; got != want {
		t.Errorf("halfproxy --version: got %q, want %q", got, want)
	}
	if got, want := command(t, "chroot", root, "stat", "-c", "%A %U %G", "/etc/halfproxy"), "drwxr-x--- root halfproxy\n"; got != want {
		t.Errorf("/etc/halfproxy: got %q, want %q", got, want)
	}
	if got := command(t, "chroot", root, "getent", "passwd", "halfproxy"); !strings.HasSuffix(got, ":/nonexistent:/usr/sbin/nologin\n") {
		t.Errorf("user: got %q, want one that nobody logs in as", got)
	}
	for _, name := range []string{
		"usr/lib/systemd/system/halfproxy.service", "usr/lib/systemd/system/halfproxy-backend.service", "etc/default/halfproxy",
		"usr/share/man/man8/halfproxy-run.8.gz", "usr/share/bash-completion/completions/halfproxy",
		"usr/share/doc/halfproxy/README.md", "usr/share/doc/halfproxy/docs/health.md", "usr/share/doc/halfproxy/deploy/halfproxy.yaml",
		"usr/share/doc/halfproxy/third-party-licenses", "usr/share/doc/halfproxy/copyright", "usr/share/doc/halfproxy/LICENSES/BSD-2-Clause.txt",
	} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
}

// onlyLooked says that nothing was started, stopped, enabled or the like.
func onlyLooked(t *testing.T, root string) {
	t.Helper()
	want := []string{"daemon-reload", "--quiet is-active halfproxy.service", "--quiet is-active halfproxy-backend.service"}
	for _, a := range asked(t, root) {
		if !slices.Contains(want, a) {
			t.Errorf("systemctl %s: it was for the operator to ask that", a)
		}
	}
}

func TestTheDebianPackageInstallsAndGoes(t *testing.T) {
	need(t, "dpkg", "chroot", "useradd")
	deb := product(t, packages(t), ".deb")
	root := root(t)
	write(t, filepath.Join(root, "halfproxy.deb"), "", 0o644)
	if err := unix.Mount(deb, filepath.Join(root, "halfproxy.deb"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(root, "halfproxy.deb"), unix.MNT_DETACH) })

	command(t, "chroot", root, "dpkg", "--install", "/halfproxy.deb")
	installed(t, root)
	onlyLooked(t, root)
	if _, err := exec.LookPath("systemd-analyze"); err == nil {
		for _, unit := range []string{"halfproxy.service", "halfproxy-backend.service"} {
			if out := command(t, "chroot", root, "systemd-analyze", "verify", "--man=no", "--generators=no", unit); strings.Contains(out, "halfproxy") {
				t.Errorf("systemd says of %s: %s", unit, out)
			}
			// Exposure, from 0 to 100: docs/security.md has what it is.
			command(t, "chroot", root, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", "/usr/lib/systemd/system/"+unit)
		}
	}

	asGettingStartedSays(t, root)

	write(t, filepath.Join(root, "etc/default/halfproxy"), "HALFPROXY_RUN_OPTIONS=--log-level=debug\n", 0o644)
	write(t, filepath.Join(root, "etc/halfproxy/halfproxy.yaml"), "services: []\n", 0o640)
	write(t, filepath.Join(root, "var/lib/halfproxy/orders.json"), "[]\n", 0o640)
	if out := command(t, "chroot", root, "dpkg", "--install", "/halfproxy.deb"); !strings.Contains(out, "without losing a packet, by: systemctl restart halfproxy") {
		t.Errorf("an upgrade of a node that runs says:\n%s\nwant how it takes the version", out)
	}
	onlyLooked(t, root)
	if got, err := os.ReadFile(filepath.Join(root, "etc/default/halfproxy")); err != nil || !strings.Contains(string(got), "debug") {
		t.Errorf("after an upgrade /etc/default/halfproxy is %q (%v), want what the operator wrote", got, err)
	}

	command(t, "chroot", root, "dpkg", "--remove", "halfproxy")
	if got := asked(t, root); got[0] != "--no-reload disable --now halfproxy.service halfproxy-backend.service" {
		t.Errorf("a removal asks systemd for %q, want a stop first", got)
	}
	command(t, "chroot", root, "dpkg", "--purge", "halfproxy")
	for name, stays := range map[string]bool{
		"etc/halfproxy/halfproxy.yaml": true, "etc/default/halfproxy": false,
		"usr/bin/halfproxy": false, "var/lib/halfproxy": false,
	} {
		if _, err := os.Stat(filepath.Join(root, name)); (err == nil) != stays {
			t.Errorf("after a purge %s: %v; should it be there: %v", name, err, stays)
		}
	}
}

// asGettingStartedSays makes the keys by the document's own commands, takes its file, and
// has the unit's user check it: rights are the matter.
func asGettingStartedSays(t *testing.T, root string) {
	t.Helper()
	doc := read(t)
	command(t, "chroot", root, "sh", "-ec", strings.Join(doc.commands(t, started, "head -c 32"), "\n"))
	write(t, filepath.Join(root, nodeFile), doc.file(t, started, "node:"), 0o640)
	command(t, "chroot", root, "chgrp", "halfproxy", "/etc/halfproxy/halfproxy.yaml")
	command(t, "chroot", "--userspec=halfproxy:halfproxy", root, "halfproxy", "check")
	if out, err := exec.Command("chroot", "--userspec=nobody:nogroup", root, "halfproxy", "check").CombinedOutput(); err == nil {
		t.Errorf("anybody may read the configuration and its keys:\n%s", out)
	}
}

func TestTheRPMInstallsAndGoes(t *testing.T) {
	need(t, "rpm", "chroot", "useradd")
	file := product(t, packages(t), ".rpm")
	command(t, "rpm", "--checksig", file)
	if got, want := command(t, "rpm", "-qp", "--configfiles", file), "/etc/default/halfproxy\n"; got != want {
		t.Errorf("configuration files: got %q, want %q", got, want)
	}
	root := root(t)
	write(t, filepath.Join(root, "halfproxy.rpm"), "", 0o644)
	if err := unix.Mount(file, filepath.Join(root, "halfproxy.rpm"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(root, "halfproxy.rpm"), unix.MNT_DETACH) })

	// Of what it needs Debian's RPM knows nothing.
	command(t, "chroot", root, "rpm", "--install", "--force-debian", "--nodeps", "/halfproxy.rpm")
	installed(t, root)
	onlyLooked(t, root)
	command(t, "chroot", root, "rpm", "--erase", "--force-debian", "halfproxy")
	if got := asked(t, root); got[0] != "--no-reload disable --now halfproxy.service halfproxy-backend.service" {
		t.Errorf("a removal asks systemd for %q, want a stop first", got)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/bin/halfproxy")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a removal: %v, want no program", err)
	}
}

func TestTheImageIsOneFileThatRuns(t *testing.T) {
	dir := t.TempDir()
	command(t, "tar", "-C", dir, "-xf", product(t, packages(t), ".oci.tar"))
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("index.json: %v (%v), want one entry", manifest, err)
	}
	if got, want := manifest.Manifests[0].Annotations["org.opencontainers.image.ref.name"], "1.2.3-4.gabcdef0"; got != want {
		t.Errorf("tag: got %q, want %q", got, want)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err = index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("image index: %v (%v), want an image", manifest, err)
	}
	if got := manifest.Manifests[0].Platform; !got.Equals(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}) {
		t.Errorf("platform: got %v", got)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*tar.Header{}
	binary := filepath.Join(dir, "extracted", "halfproxy")
	for r := tar.NewReader(mutate.Extract(image)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			files["/"+header.Name] = header
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			write(t, binary, string(content), 0o755)
		}
	}
	entry := config.Config.Entrypoint[0]
	if len(files) != 1 || files[entry] == nil || files[entry].Mode != 0o755 {
		t.Fatalf("files: %v, want one, which is the entry point %s", files, entry)
	}
	need(t, "chroot")
	if got, want := command(t, "chroot", filepath.Dir(binary), "/halfproxy", "--version"), "halfproxy version "+version+"\n"; got != want {
		t.Errorf("alone in the world: got %q, want %q", got, want)
	}
}

func TestTheBillOfMaterialsIsTheBinarys(t *testing.T) {
	dir := packages(t)
	f, err := os.Open(product(t, dir, ".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	binary := release{bin: dir}.binary(runtime.GOARCH)
	sum, err := sum256(binary)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := (*bom.Metadata.Component.Hashes)[0].Value, hex.EncodeToString(sum); got != want {
		t.Errorf("sum of the binary: got %s, want %s", got, want)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"std " + info.GoVersion}
	for _, dep := range info.Deps {
		want = append(want, dep.Path+" "+dep.Version)
	}
	var got []string
	for _, c := range *bom.Components {
		got = append(got, c.Name+" "+c.Version)
		if c.Licenses == nil || len(*c.Licenses) == 0 {
			t.Errorf("%s has no licence", c.Name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("components: got %q, want %q", got, want)
	}
}
