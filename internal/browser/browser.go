// Package browser drives a headless Chromium in tests, by its debugging protocol over a
// pair of pipes: no port is opened, and nothing but Chromium itself is needed.
package browser

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// program is where Debian has Chromium itself; what is in PATH is a script around it.
const program = "/usr/lib/chromium/chromium"

// patience is for one answer: a machine with two busy cores takes its time.
const patience = 60 * time.Second

// Page is an open page.
type Page struct {
	t       *testing.T
	out     io.Writer
	session string

	mu         sync.Mutex
	last       int
	answers    map[int]chan answer
	complaints []string
	gone       chan struct{} // closed once Chromium says nothing more
}

type answer struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// Open starts Chromium by start, which may put it into a namespace, with an empty page
// open. It ends with the test. A test is skipped where Chromium is not installed.
func Open(t *testing.T, start func(*exec.Cmd) error) *Page {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Skipf("%s is not installed: apt-get install chromium", program)
	}
	theirIn, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := os.MkdirTemp("", "hptest-browser-") // whose last writers may outlive Chromium by a moment
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless=new", "--remote-debugging-pipe", "--user-data-dir="+profile,
		"--no-sandbox", // which it refuses to run without as root
		"--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--no-pings", "--hide-scrollbars", "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4, as it expects
	cmd.Env = append(os.Environ(), "HOME="+profile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	errors, err := os.Create(filepath.Join(profile, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errors.Close()
	cmd.Stderr = errors
	if err := start(cmd); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	theirIn.Close()
	theirOut.Close()
	p := &Page{t: t, out: out, answers: make(map[int]chan answer), gone: make(chan struct{})}
	go p.listen(in)
	t.Cleanup(func() {
		out.Close()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it and its children
		_ = cmd.Wait()
		<-p.gone
		in.Close()
		_ = os.RemoveAll(profile)
	})

	var target struct{ TargetID string }
	p.ask("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	p.ask("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	p.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		p.ask(domain+".enable", nil, nil)
	}
	return p
}

// listen takes what Chromium says, until it ends.
func (p *Page) listen(in io.Reader) {
	defer close(p.gone)
	lines := bufio.NewReader(in)
	for {
		text, err := lines.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			ID     int
			Method string
			Params json.RawMessage
			answer
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		p.mu.Lock()
		if waiting := p.answers[m.ID]; waiting != nil {
			delete(p.answers, m.ID)
			waiting <- m.answer
		}
		if what := complaint(m.Method, m.Params); what != "" {
			p.complaints = append(p.complaints, what)
		}
		p.mu.Unlock()
	}
}

// complaint is what a page is not to do: errors in its script and its log, and what its
// policy or the network keeps it from.
func complaint(method string, params json.RawMessage) string {
	var m struct {
		Type             string
		Entry            struct{ Level, Text, URL string }
		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	if json.Unmarshal(params, &m) != nil {
		return ""
	}
	switch {
	case method == "Runtime.exceptionThrown":
		return m.ExceptionDetails.Text + " " + m.ExceptionDetails.Exception.Description
	case method == "Runtime.consoleAPICalled" && (m.Type == "error" || m.Type == "warning" || m.Type == "assert"):
		return string(params)
	case method == "Log.entryAdded" && (m.Entry.Level == "error" || m.Entry.Level == "warning"):
		return m.Entry.Text + " " + m.Entry.URL
	}
	return ""
}

func (p *Page) ask(method string, params, result any) {
	p.t.Helper()
	if params == nil {
		params = map[string]any{}
	}
	p.mu.Lock()
	p.last++
	waiting := make(chan answer, 1)
	p.answers[p.last] = waiting
	m, err := json.Marshal(map[string]any{"id": p.last, "method": method, "params": params, "sessionId": p.session})
	if p.session == "" {
		m, err = json.Marshal(map[string]any{"id": p.last, "method": method, "params": params})
	}
	p.mu.Unlock()
	if err == nil {
		_, err = p.out.Write(append(m, 0))
	}
	if err != nil {
		p.t.Fatalf("ask Chromium for %s: %v", method, err)
	}
	select {
	case a := <-waiting:
		if a.Error != nil {
			p.t.Fatalf("ask Chromium for %s: %s", method, a.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(a.Result, result); err != nil {
				p.t.Fatalf("Chromium's answer to %s: %v", method, err)
			}
		}
	case <-p.gone:
		p.t.Fatalf("ask Chromium for %s: it has ended", method)
	case <-time.After(patience):
		p.t.Fatalf("ask Chromium for %s: no answer within %v", method, patience)
	}
}

// Go opens url.
func (p *Page) Go(url string) {
	p.t.Helper()
	var m struct{ ErrorText string }
	if p.ask("Page.navigate", map[string]any{"url": url}, &m); m.ErrorText != "" {
		p.t.Fatalf("open %s: %s", url, m.ErrorText)
	}
}

// Eval gives the value of an expression in the page, as text.
func (p *Page) Eval(expression string) string {
	p.t.Helper()
	var m struct {
		Result           struct{ Value any }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	p.ask("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &m)
	if m.ExceptionDetails != nil {
		p.t.Fatalf("%s: %s", expression, m.ExceptionDetails.Exception.Description)
	}
	return fmt.Sprint(m.Result.Value)
}

// Until waits for an expression to be true, and tells how long that took.
func (p *Page) Until(within time.Duration, expression string) time.Duration {
	p.t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(p.t.Context(), within)
	defer cancel()
	for p.Eval("Boolean("+expression+")") != "true" {
		if ctx.Err() != nil {
			p.t.Fatalf("not within %v: %s; the page:\n%s", within, expression, p.Eval("document.body.innerText"))
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begun)
}

// Resize gives the page another size.
func (p *Page) Resize(width, height int) {
	p.t.Helper()
	p.ask("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
}

// Prefer sets a preference that pages are told of: prefer("color-scheme", "dark").
func (p *Page) Prefer(feature, value string) {
	p.t.Helper()
	p.ask("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-" + feature, "value": value}}}, nil)
}

// Click clicks into the middle of an element, as a mouse does.
func (p *Page) Click(selector string) {
	p.t.Helper()
	var at struct{ X, Y float64 }
	where := p.Eval(fmt.Sprintf(`(() => {
		const e = document.querySelector(%q);
		e.scrollIntoView({block: "nearest", behavior: "instant"});
		const {x, y, width, height} = e.getBoundingClientRect();
		return JSON.stringify({X: x + width / 2, Y: y + height / 2});
	})()`, selector))
	if err := json.Unmarshal([]byte(where), &at); err != nil {
		p.t.Fatalf("where is %s: %s", selector, where)
	}
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		p.ask("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at.X, "y": at.Y, "button": "left", "clickCount": 1}, nil)
	}
}

// Press presses a key, named as in KeyboardEvent.key.
func (p *Page) Press(key string) {
	p.t.Helper()
	down := map[string]any{"type": "keyDown", "key": key}
	switch {
	case len(key) == 1:
		down["text"] = key
	case key == "Tab":
		down["windowsVirtualKeyCode"] = 9
	case key == "Enter":
		down["windowsVirtualKeyCode"], down["text"] = 13, "\r"
	case key == "Escape":
		down["windowsVirtualKeyCode"] = 27
	}
	p.ask("Input.dispatchKeyEvent", down, nil)
	p.ask("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key}, nil)
}

// Picture is the page as PNG, as much of it as fits.
func (p *Page) Picture() []byte {
	p.t.Helper()
	var m struct{ Data string }
	p.ask("Page.captureScreenshot", map[string]any{"format": "png"}, &m)
	png, err := base64.StdEncoding.DecodeString(m.Data)
	if err != nil {
		p.t.Fatal(err)
	}
	return png
}

// Complaints are what Chromium had to say against the page until now.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.complaints)
}
