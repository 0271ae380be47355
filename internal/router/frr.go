package router

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/halfproxy/halfproxy/internal/netns"
)

const (
	frrInstall = "apt-get install frr"
	frrUser    = "frr"
)

// FRR is FRRouting's zebra, bgpd and bfdd with vtysh.
type FRR struct {
	dir     string
	vtysh   string
	daemons []*process // in the order in which they were started
}

// StartFRR runs FRR in ns with the integrated configuration conf, as vtysh
// takes it; a line that FRR does not take is an error. dir is an existing
// directory for sockets and logs (zebra.log and so on): short, given to FRR's
// user, and within reach of that user, which the parents of one from
// testing.T.TempDir are not.
func StartFRR(ns *netns.NS, dir, conf string) (*FRR, error) {
	f := &FRR{dir: dir}
	if err := f.start(ns, conf); err != nil {
		return nil, errors.Join(fmt.Errorf("frr in %s: %w", ns.Name, err), f.Close())
	}
	return f, nil
}

func (f *FRR) start(ns *netns.NS, conf string) error {
	var err error
	if f.vtysh, err = find("vtysh", frrInstall); err != nil {
		return err
	}
	if err := f.prepareDir(); err != nil {
		return err
	}
	for _, daemon := range []struct {
		name    string
		sockets []string
		options []string
	}{
		{"zebra", []string{f.path("zserv.api"), f.path("zebra.vty")}, nil},
		{"bgpd", []string{f.path("bgpd.vty")}, nil},
		{"bfdd", []string{f.path("bfdd.vty")}, []string{"--bfdctl", f.path("bfdd.sock")}},
	} {
		path, err := find("/usr/lib/frr/"+daemon.name, frrInstall)
		if err != nil {
			return err
		}
		process, err := f.daemon(ns, path, daemon.sockets, daemon.options)
		if err != nil {
			return err
		}
		f.daemons = append(f.daemons, process)
	}
	if err := os.WriteFile(f.path("frr.conf"), []byte(conf), 0o644); err != nil {
		return err
	}
	_, err = control(f.vtysh, "--config_dir", f.dir, "--vty_socket", f.dir, "-f", f.path("frr.conf"))
	return err
}

// prepareDir hands the directory to the user that the daemons become.
func (f *FRR) prepareDir() error {
	if err := checkDir(f.dir); err != nil {
		return err
	}
	for parent := filepath.Dir(f.dir); parent != "/"; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("directory %s is closed to user %s, who needs %s: take one below /tmp or /run", parent, frrUser, f.dir)
		}
	}
	u, err := user.Lookup(frrUser)
	if err != nil {
		return fmt.Errorf("%w: %s", err, frrInstall)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	return os.Chown(f.dir, uid, gid)
}

// daemon starts one of FRR's with an empty configuration, which vtysh fills:
// it takes the daemons' parts apart and reports every line it does not know.
func (f *FRR) daemon(ns *netns.NS, path string, sockets, options []string) (*process, error) {
	name := filepath.Base(path)
	for _, conf := range []string{name + ".conf", "vtysh.conf"} {
		if err := os.WriteFile(f.path(conf), nil, 0o644); err != nil {
			return nil, err
		}
	}
	options = append(options, "-f", f.path(name+".conf"), "-i", f.path(name+".pid"), "-z", f.path("zserv.api"),
		"--vty_socket", f.dir, "-P", "0", "--log", "stdout")
	return start(ns, f.path(name+".log"), sockets, path, options...)
}

func (f *FRR) path(name string) string { return filepath.Join(f.dir, name) }

// Command runs one vtysh command, such as "show bgp summary json".
func (f *FRR) Command(command string) (string, error) {
	return control(f.vtysh, "--config_dir", f.dir, "--vty_socket", f.dir, "-c", command)
}

// Close stops the daemons, the last one first. They take their routes out of the
// kernel.
func (f *FRR) Close() error {
	var errs []error
	for _, daemon := range slices.Backward(f.daemons) {
		errs = append(errs, daemon.stop())
	}
	return errors.Join(errs...)
}
