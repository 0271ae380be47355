package backend

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sysctl is one that has to have a value. Its file stays open, as /proc/sys/net
// shows each thread its own network namespace.
type sysctl struct {
	name string // in /proc/sys
	want string
	file *os.File
}

// setSysctls sets what keeps a host that has VIPs on lo from answering ARP for
// them (arp_ignore 1: only for addresses of the interface that was asked), and
// from naming them as the sender of its own requests (arp_announce 2). The
// kernel takes the greater of all and the interface's own; both are set, so that
// neither can be lowered unnoticed. It gives what it has set also when it fails.
func setSysctls(interfaces []string, j *journal) ([]*sysctl, error) {
	wanted := make(map[string]bool)
	var set []*sysctl
	for _, conf := range append([]string{"all"}, interfaces...) {
		for _, s := range []*sysctl{{name: "arp_ignore", want: "1"}, {name: "arp_announce", want: "2"}} {
			s.name = filepath.Join("net/ipv4/conf", conf, s.name)
			if err := s.open(); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					err = fmt.Errorf("interface %s does not exist: `ip link` lists those there are", conf)
				}
				return set, err
			}
			set = append(set, s)
			wanted[s.name] = true
			if err := s.set(j); err != nil {
				return set, err
			}
		}
	}
	// Of an earlier run, on interfaces that are no longer listed.
	for name := range j.Done.Sysctls {
		if wanted[name] {
			continue
		}
		s := &sysctl{name: name}
		err := s.open()
		if errors.Is(err, fs.ErrNotExist) {
			delete(j.Done.Sysctls, name)
			continue
		}
		if err == nil {
			err = s.restore(j)
			s.file.Close()
		}
		if err != nil {
			return set, err
		}
	}
	return set, j.save()
}

func (s *sysctl) open() (err error) {
	s.file, err = os.OpenFile(filepath.Join("/proc/sys", s.name), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open sysctl: %w: CAP_NET_ADMIN is needed, and /proc/sys that can be written to", err)
	}
	return nil
}

func (s *sysctl) read() (string, error) {
	data := make([]byte, 64)
	n, err := s.file.ReadAt(data, 0)
	if n == 0 {
		return "", fmt.Errorf("read sysctl %s: %w", s.name, err)
	}
	return strings.TrimSpace(string(data[:n])), nil
}

func (s *sysctl) write(value string) error {
	if _, err := s.file.WriteAt([]byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", s.name, value, err)
	}
	return nil
}

func (s *sysctl) set(j *journal) error {
	value, err := s.read()
	if err != nil || value == s.want {
		return err
	}
	if err := j.addSysctl(s.name, value); err != nil {
		return err
	}
	return s.write(s.want)
}

// check tells whether the value is still as it was set.
func (s *sysctl) check() error {
	value, err := s.read()
	if err == nil && value != s.want {
		err = fmt.Errorf("sysctl %s is %s: set it to %s", strings.ReplaceAll(s.name, "/", "."), value, s.want)
	}
	return err
}

// restore gives it the value that it had, if it was changed.
func (s *sysctl) restore(j *journal) error {
	old, changed := j.Done.Sysctls[s.name]
	if !changed {
		return nil
	}
	if err := s.write(old); err != nil && !errors.Is(err, fs.ErrNotExist) { // the interface is gone
		return err
	}
	delete(j.Done.Sysctls, s.name)
	return nil
}
