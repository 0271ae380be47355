package router

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/halfproxy/halfproxy/internal/netns"
)

const birdInstall = "apt-get install bird2"

// BIRD is the BIRD daemon, version 2, with birdc.
type BIRD struct {
	birdc  string
	socket string
	bird   *process
}

// StartBIRD runs BIRD in ns with the configuration conf; one that BIRD does
// not take is an error. dir is an existing directory with a short path for the
// socket and the log (bird.log).
func StartBIRD(ns *netns.NS, dir, conf string) (*BIRD, error) {
	b, err := startBIRD(ns, dir, conf)
	if err != nil {
		return nil, fmt.Errorf("bird in %s: %w", ns.Name, err)
	}
	return b, nil
}

func startBIRD(ns *netns.NS, dir, conf string) (*BIRD, error) {
	// Debian keeps both in /usr/sbin, which is not in everybody's PATH.
	bird, err := find("/usr/sbin/bird", birdInstall)
	if err != nil {
		return nil, err
	}
	birdc, err := find("/usr/sbin/birdc", birdInstall)
	if err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "bird.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	// BIRD may take commands for a moment before it has read its configuration.
	if _, err := control(bird, "-p", "-c", file); err != nil {
		return nil, err
	}
	b := &BIRD{birdc: birdc, socket: filepath.Join(dir, "bird.ctl")}
	b.bird, err = start(ns, filepath.Join(dir, "bird.log"), []string{b.socket}, bird,
		"-f", "-c", file, "-s", b.socket, "-P", filepath.Join(dir, "bird.pid"))
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Command runs one birdc command, such as "show route all".
func (b *BIRD) Command(command string) (string, error) {
	return control(b.birdc, "-s", b.socket, command)
}

// Close stops BIRD. It takes its routes out of the kernel.
func (b *BIRD) Close() error { return b.bird.stop() }
