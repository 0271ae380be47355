package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/halfproxy/halfproxy/internal/netns"
)

// stopTimeout is for a node that withdraws its routes and forwards for a
// little longer before it ends.
const stopTimeout = 10 * time.Second

// process is a child in a namespace, its output in a log file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
	err  error         // how it ended; to be read once done is closed
}

// startProcess runs a program in ns and appends its output to log.
func startProcess(ns *netns.NS, log string, stdin io.Reader, path string, args ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own copy
	p := &process{name: filepath.Base(path), log: log, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, out, out
	// A process group of its own: Ctrl-C is for the lab, which then ends its
	// children in order. A parent-death signal would not do: it comes when the
	// thread that started the child ends, and threads in namespaces soon do.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", p.name, ns.Name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal gives no error for a process that has ended.
func (p *process) signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// kill ends the process at once and returns when it has.
func (p *process) kill() error {
	err := p.signal(os.Kill)
	<-p.done
	return err
}

// stop asks the process to end, and sees to it that it does.
func (p *process) stop() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(p.kill(), p.failure(fmt.Sprintf("did not end within %v of SIGTERM and was killed", stopTimeout)))
	}
}

func (p *process) failure(what string) error {
	log, _ := os.ReadFile(p.log) // what else there is to say stands in what
	return fmt.Errorf("%s %s; the end of its log %s:\n%s", p.name, what, p.log, tail(bytes.TrimSpace(log), 15))
}
