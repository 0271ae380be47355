package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	netnsDir = "/run/netns"
	// lockFile in Dir is locked by the lab that stands there, and holds its
	// process ID.
	lockFile = "lab.pid"
)

// namespaces matches the names that a lab gives, after the prefix.
var namespaces = regexp.MustCompile(`^(client|router|switch|lb\d+|b\d+)$`)

// claim takes the names and the directory for this lab.
func (l *Lab) claim() error {
	names, err := left(l.options.Prefix)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("network namespace %s exists: another lab runs or was left behind, remove it with `halfproxy lab --clean`", names[0])
	}
	if err := os.Mkdir(l.options.Dir, 0o755); err != nil { // FRR's user has to get in
		if errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("%w: another lab runs or was left behind, remove it with `halfproxy lab --clean`", err)
		}
		return err
	}
	l.onClose(func() error { return os.RemoveAll(l.options.Dir) })
	lock, err := os.OpenFile(filepath.Join(l.options.Dir, lockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	l.onClose(lock.Close)
	if _, err := fmt.Fprint(lock, os.Getpid()); err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return l.mountPins()
}

// mountPins makes a BPF file system for this lab's nodes. It takes all that is
// pinned there along when it goes.
func (l *Lab) mountPins() error {
	dir := pinDir(l.options)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system on %s: %w", dir, err)
	}
	l.onClose(func() error { return unmountPins(l.options) })
	return nil
}

func pinDir(o Options) string { return filepath.Join(o.Dir, "bpf") }

func unmountPins(o Options) error {
	err := unix.Unmount(pinDir(o), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted there
		return nil
	}
	return err
}

// Clean removes what a lab with these options left behind when it could not
// clean up itself: processes in its namespaces, the namespaces, its directory.
// A lab that still runs is refused.
func Clean(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	lock, err := os.Open(filepath.Join(o.Dir, lockFile))
	if err == nil {
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			pid, _ := os.ReadFile(lock.Name())
			return fmt.Errorf("the lab in %s still runs: end it with Ctrl-C, or with `kill %s`", o.Dir, pid)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	names, err := left(o.Prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, killAll(filepath.Join(netnsDir, name)), netns.DeleteNamed(name))
	}
	if lock != nil { // what has the lock file is a lab's
		errs = append(errs, unmountPins(o), os.RemoveAll(o.Dir))
	}
	return errors.Join(errs...)
}

// left lists the namespaces of a lab with this prefix that exist.
func left(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), prefix); ok && namespaces.MatchString(rest) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// killAll ends the processes in a network namespace.
func killAll(ns string) error {
	pids, err := processesIn(ns)
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("end process %d in %s: %w", pid, ns, err))
		}
	}
	return errors.Join(errs...)
}

// processesIn lists the processes in a network namespace, this one excepted.
// Being there is what tells them for a lab's: a process ID that was noted down
// may be another's by now.
func processesIn(ns string) ([]int, error) {
	want, err := os.Stat(ns)
	if err != nil {
		return nil, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, path := range processes {
		got, err := os.Stat(path)
		if err != nil || !os.SameFile(got, want) {
			continue // has ended meanwhile, or is somewhere else
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			return nil, err
		}
		if pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
