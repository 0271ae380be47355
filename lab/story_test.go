package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheStoryKeepsItsPromisesAndLeavesNothingBehind(t *testing.T) {
	needRoot(t)
	o := testOptions(os.Getpid())
	var out bytes.Buffer
	begun := time.Now()
	err := Run(t.Context(), o, &Stories()[0], io.MultiWriter(&out, t.Output()))
	if err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("took %v, want less than a minute", took)
	}
	for _, want := range []string{"is killed (SIGKILL) in the middle of", "downloads have ended; 12 are complete", "0 at any other time", "0 for any other reason"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got a story without %q", want)
		}
	}
	nothingLeft(t, o)
}

// Each of the other stories is told on a terminal.
func TestTheOtherStoriesKeepTheirPromises(t *testing.T) {
	for i, story := range Stories()[1:] {
		t.Run(story.Name, func(t *testing.T) {
			needRoot(t)
			o := testOptions(os.Getpid())
			o.Forward, o.Nodes = Forwards[i%len(Forwards)], max(2, story.nodes)
			ours, theirs := openTerminal(t)
			shown := make(chan string)
			go func() {
				var all bytes.Buffer
				_, _ = io.Copy(&all, ours) // ends with an error, when theirs is closed
				shown <- all.String()
			}()
			err := Run(t.Context(), o, &story, theirs)
			theirs.Close()
			got := <-shown
			if err != nil {
				t.Errorf("got %v, want no error, from:\n%s", err, got)
			}
			if !strings.Contains(got, " packets/s │ ") || !strings.Contains(got, "Done. Of ") {
				t.Error("got no live line, or no summary")
			}
			nothingLeft(t, o)
		})
	}
}

// openTerminal gives both sides of one that is 200 columns wide.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { ours.Close() })
	must(t, unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	must(t, err)
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	must(t, unix.IoctlSetWinsize(int(theirs.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 200}))
	return ours, theirs
}

func TestAnInterruptedLabLeavesNothingBehind(t *testing.T) {
	needRoot(t)
	o := testOptions(os.Getpid())
	for _, after := range []time.Duration{300 * time.Millisecond, 9 * time.Second} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		defer cancel()
		var out bytes.Buffer
		if err := Run(ctx, o, &Stories()[0], io.MultiWriter(&out, t.Output())); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: got %v, want %v", after, err, context.DeadlineExceeded)
		}
		if strings.Contains(out.String(), "BROKEN") {
			t.Errorf("after %v: got a broken promise, want none", after)
		}
		nothingLeft(t, o)
	}
}

func TestALabThatWasKilledIsRefusedUntilItIsCleaned(t *testing.T) {
	needRoot(t)
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), standEnv+"="+built)
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	o := testOptions(other.Process.Pid)
	defer func() {
		other.Process.Kill()
		other.Wait()
		if err := Clean(o); err != nil {
			t.Error(err)
		}
		nothingLeft(t, o)
	}()
	if err := readUntil(stdout, "The lab stands"); err != nil {
		t.Fatal(err)
	}

	if err := Clean(o); err == nil || !strings.Contains(err.Error(), "still runs") {
		t.Errorf("Clean while it runs: got %v, want that it still runs", err)
	}
	other.Process.Kill()
	other.Wait()
	if _, err := Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), "halfproxy lab --clean") {
		t.Errorf("Start after its death: got %v, want the remedy", err)
	}
	if got := running(t); got != 3 {
		t.Errorf("processes that a killed lab leaves: got %d, want its 3 nodes", got)
	}
}

// stand is a lab that stands until it is killed: what the test program becomes
// when standEnv asks for it.
func stand() {
	if err := Run(context.Background(), testOptions(os.Getpid()), nil, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func readUntil(r io.Reader, want string) error {
	var text strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if strings.Contains(lines.Text(), want) {
			return nil
		}
		fmt.Fprintln(&text, lines.Text())
	}
	return fmt.Errorf("no %q in:\n%s", want, &text)
}

func nothingLeft(t *testing.T, o Options) {
	t.Helper()
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if names, err := left(o.Prefix); err != nil || len(names) > 0 {
		t.Errorf("namespaces left behind: got %v, %v, want none", names, err)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory %s: got %v, want that it does not exist", o.Dir, err)
	}
	if got := running(t); got != 0 {
		t.Errorf("processes left behind: got %d, want none", got)
	}
}

// running counts the processes of halfproxy, wherever they are, once those
// that are about to end have done so.
func running(t *testing.T) int {
	t.Helper()
	time.Sleep(200 * time.Millisecond)
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, exe := range exes {
		if path, err := os.Readlink(exe); err == nil && path == built {
			n++
		}
	}
	return n
}
