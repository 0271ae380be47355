package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// journal is what has to be taken back, in a file that is written before each
// change. One that a process left behind when it died goes on as ours: what it
// calls the old value of a sysctl is still that. The file is locked while the
// process lives, so that two cannot take back each other's work.
type journal struct {
	file *os.File
	Done done
}

// done is what the file holds.
type done struct {
	Addresses []netip.Addr      `json:"addresses"` // put on lo
	Routes    []netip.Prefix    `json:"routes"`    // local ones put there
	Sysctls   map[string]string `json:"sysctls"`   // the values they had
}

// openJournal opens the journal of the calling thread's network namespace.
func openJournal(dir string) (*journal, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("journal: make its directory: %w", err)
	}
	id, err := namespaceID()
	if err != nil {
		return nil, fmt.Errorf("journal: tell network namespaces apart: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("backend-%d.json", id))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journal{file: file}
	if err := j.read(); err != nil {
		file.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) read() error {
	if err := unix.Flock(int(j.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another halfproxy backend runs on this host: stop it first")
		}
		return fmt.Errorf("journal: lock %s: %w", j.file.Name(), err)
	}
	// Bytes behind the first value are of a longer one that was there before.
	if err := json.NewDecoder(j.file).Decode(&j.Done); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("journal: read %s: %w: it tells what an earlier process changed, remove it to leave that as it is", j.file.Name(), err)
	}
	if j.Done.Sysctls == nil {
		j.Done.Sysctls = make(map[string]string)
	}
	return nil
}

// namespaceID is the cookie of the calling thread's network namespace, which no
// other has until the next boot, or, before kernel 5.14, the inode of it.
func namespaceID() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
		return cookie, nil
	}
	var stat unix.Stat_t
	err = unix.Stat("/proc/thread-self/ns/net", &stat)
	return stat.Ino, err
}

// vips are those that were put on lo.
func (j *journal) vips() []lb.VIP {
	var vips []lb.VIP
	for _, a := range j.Done.Addresses {
		vips = append(vips, lb.AddrVIP(a))
	}
	for _, p := range j.Done.Routes {
		vips = append(vips, lb.VIP{Prefix: p})
	}
	return vips
}

// addVIP notes that the VIP is about to be put on lo.
func (j *journal) addVIP(vip lb.VIP) error {
	if vip.IsSingleIP() {
		j.Done.Addresses = append(j.Done.Addresses, vip.Addr())
	} else {
		j.Done.Routes = append(j.Done.Routes, vip.Prefix)
	}
	return j.save()
}

func (j *journal) removeVIP(vip lb.VIP) {
	j.Done.Addresses = slices.DeleteFunc(j.Done.Addresses, func(a netip.Addr) bool { return lb.AddrVIP(a) == vip })
	j.Done.Routes = slices.DeleteFunc(j.Done.Routes, func(p netip.Prefix) bool { return p == vip.Prefix })
}

// addSysctl notes the value of a sysctl that is about to be changed.
func (j *journal) addSysctl(name, value string) error {
	j.Done.Sysctls[name] = value
	return j.save()
}

func (j *journal) save() error {
	data, err := json.Marshal(j.Done)
	if err == nil {
		_, err = j.file.WriteAt(data, 0)
	}
	if err == nil {
		err = j.file.Truncate(int64(len(data)))
	}
	if err != nil {
		return fmt.Errorf("journal: write %s: %w", j.file.Name(), err)
	}
	return nil
}

// close removes the file when there is nothing left to take back.
func (j *journal) close() error {
	defer j.file.Close()
	if len(j.vips())+len(j.Done.Sysctls) > 0 {
		return j.save()
	}
	if err := os.Remove(j.file.Name()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
