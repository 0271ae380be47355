package router

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/halfproxy/halfproxy/internal/netns"
)

const (
	startTimeout = 10 * time.Second
	stopTimeout  = 5 * time.Second
	// A Unix socket's path has 108 bytes with its final zero (unix(7)); the
	// longest name below dir is zserv.api.
	maxDir = 107 - len("/zserv.api")
)

// process is a daemon in the foreground, its output in a file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed once the process has ended
}

// start runs path in ns and returns once it answers on all sockets.
func start(ns *netns.NS, log string, sockets []string, path string, args ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the daemon has its own copy
	p := &process{name: filepath.Base(path), log: log, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// A process group of its own: Ctrl-C is for the caller, who closes the
	// router when nobody needs it any more.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code says less than the log, which failed prints
	}()
	if err := p.await(sockets); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *process) await(sockets []string) error {
	timeout := time.After(startTimeout)
	for _, socket := range sockets {
		for {
			if conn, err := net.Dial("unix", socket); err == nil {
				_ = conn.Close()
				break
			}
			select {
			case <-p.done:
				return p.failed("ended at once")
			case <-timeout:
				return p.failed(fmt.Sprintf("does not answer on %s after %v", socket, startTimeout))
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

func (p *process) failed(what string) error {
	log, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s %s; its log %s:\n%s", p.name, what, p.log, bytes.TrimSpace(log))
}

// stop ends the process and waits for its end.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // one that has ended already is what we want
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return p.failed(fmt.Sprintf("did not end within %v of SIGTERM and was killed", stopTimeout))
}

// find gives the path of an installed program.
func find(program, install string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, install)
	}
	return path, nil
}

func checkDir(dir string) error {
	if !filepath.IsAbs(dir) || len(dir) > maxDir {
		return fmt.Errorf("directory %q for sockets: must be absolute and have at most %d characters", dir, maxDir)
	}
	return nil
}

// control runs a command-line client and gives what it prints.
func control(path string, args ...string) (string, error) {
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", filepath.Base(path), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}
