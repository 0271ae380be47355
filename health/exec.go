package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/halfproxy/halfproxy/lb"
)

// command is a program that knows whether a backend is well.
type command struct {
	target lb.Target
	stuck  <-chan error // the end of a program that outlived its killing; nil: none has
}

// run runs it, and kills it and all that it has started when ctx ends. Probes of
// one target follow each other: so does run.
func (c *command) run(ctx context.Context) error {
	if c.stuck != nil && len(c.stuck) == 0 {
		return fmt.Errorf("%s does not end though killed: look at what it waits for in the kernel", c.name())
	}
	c.stuck = nil
	result := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with this goroutine, as it is no good for
		// anything else any more.
		runtime.LockOSThread()
		result <- c.runOnThread(ctx)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-result:
		return err
	case <-time.After(time.Second):
		c.stuck = result
		return c.tooLong("")
	}
}

// runOnThread leaves the thread without ambient capabilities: those that systemd
// gave this process are not for the programs that it starts.
func (c *command) runOnThread(ctx context.Context) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("give up capabilities before %s: %w", c.name(), err)
	}
	var said firstLine
	cmd := &exec.Cmd{
		Path: c.name(), Args: c.target.Check.Command, Env: c.environment(), Dir: "/",
		Stdout: &said, Stderr: &said,
		// A group of its own, so that all of it can be killed; and when this process
		// dies, with it its threads, so does the program.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
		// Who left the group may hold the output open for ever.
		WaitDelay: 100 * time.Millisecond,
	}
	if err := cmd.Start(); err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return fmt.Errorf("start %s: %w", c.name(), err)
	}
	pid := cmd.Process.Pid
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		awaitExit(pid)
	}()
	select {
	case <-exited:
	case <-ctx.Done():
	}
	// Not reaped yet, so the number is nobody else's. What is left of the group after
	// the program's own end goes as well.
	_ = unix.Kill(-pid, unix.SIGKILL)
	<-exited
	return c.judge(cmd.Wait(), ctx.Err(), said.String())
}

func (c *command) judge(err, stopped error, said string) error {
	if said != "" {
		said = ": " + said
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("%s exits with %d%s", c.name(), exit.ExitCode(), said)
	case stopped != nil:
		return c.tooLong(said)
	}
	return fmt.Errorf("%s: %w%s", c.name(), err, said)
}

func (c *command) tooLong(said string) error {
	return fmt.Errorf("%s not done within %v, killed%s", c.name(), c.target.Check.Timeout, said)
}

func (c *command) name() string { return c.target.Check.Command[0] }

// environment is all that the program is told: nothing of ours.
func (c *command) environment() []string {
	t := c.target
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HALFPROXY_SERVICE=" + t.Service,
		"HALFPROXY_BACKEND=" + t.Backend,
		"HALFPROXY_ADDRESS=" + t.Address.String(),
		"HALFPROXY_TIMEOUT=" + strconv.FormatFloat(t.Check.Timeout.Seconds(), 'f', -1, 64),
	}
	if t.Check.Port != 0 {
		env = append(env, "HALFPROXY_PORT="+strconv.Itoa(int(t.Check.Port)))
	}
	return env
}

// awaitExit waits for the end of a child and leaves it to be reaped.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// firstLine keeps the beginning of what it is written and takes the rest, so that
// no program waits for a reader.
type firstLine struct{ kept []byte }

func (f *firstLine) Write(b []byte) (int, error) {
	const most = 1 << 10
	f.kept = append(f.kept, b[:min(len(b), most-len(f.kept))]...)
	return len(b), nil
}

func (f *firstLine) String() string {
	line, _, _ := bytes.Cut(bytes.TrimLeft(f.kept, "\r\n \t"), []byte("\n"))
	return quote(string(line))
}
