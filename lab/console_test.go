package lab

import (
	"bytes"
	"context"
	"flag"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/browser"
)

var consolePicture = flag.String("console-picture", "", "`FILE` for a picture of a node's console")

// A person looks at lb1 and clicks about while a story is told: a backend dies and returns,
// then a node.
func TestTheConsoleFollowsAStory(t *testing.T) {
	l := start(t, Options{Nodes: 3, Backends: 4})
	p := browser.Open(t, l.Nodes()[0].ns.Start)
	p.Resize(1400, 1180)
	p.Go("http://" + httpListen + "/")
	p.Until(30*time.Second, isLive)
	text := p.Eval("document.body.innerText")
	for _, want := range []string{"Nothing to look at", "4 of 4 backends up", "3 of 3 in sight", "10.2.0.1/32", "2001:db8:2::1/128", "session up", "announced"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	story := Story{chapters: func(s *teller) []chapter { return []chapter{s.backendDies, s.nodeDies} }}
	told := &tale{}
	ended := make(chan error, 1)
	go func() { ended <- story.Tell(ctx, l, told) }() // whether it keeps its promises is another test's matter
	defer func() {
		cancel()
		<-ended
		t.Logf("the story:\n%s", told)
	}()

	told.await(t, `Traffic: `)
	p.Until(10*time.Second, `/^[1-9]/.test(`+row("b2")+`.querySelector('[data-label="Traffic now"]').innerText)`)
	lookAround(t, p)

	backend := told.await(t, `(b\d) is killed: its server is gone`)
	took := p.Until(10*time.Second, row(backend)+`.querySelector(".s.bad")?.textContent === "down"`)
	t.Logf("the backend was shown as down %v after it died", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("shown after %v, want 3 s at most", took)
	}
	p.Until(10*time.Second, `document.querySelector("#problems").innerText.includes("web: `+backend+` is down: ")`)
	p.Until(10*time.Second, `document.querySelector("#log").innerText.includes("backend is down for this node")`)
	p.Until(10*time.Second, `[...`+row(backend)+`.querySelectorAll("td .bad")].filter((e) => e.textContent === "down").length >= 3`) // by the others, too
	if *consolePicture != "" {
		p.Prefer("color-scheme", "dark")
		if err := os.WriteFile(*consolePicture, p.Picture(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	told.await(t, `every node uses it again`)
	p.Until(10*time.Second, row(backend)+`.querySelector(".s.good")?.textContent === "up"`)

	node := told.await(t, `(lb\d) is killed \(SIGKILL\)`)
	if node == "lb1" { // whose page it is
		p.Until(20*time.Second, `!document.querySelector("#gone").hidden && document.querySelector("#gone").textContent.includes("lb1 does not answer")`)
		told.await(t, `later it is back`)
		p.Until(20*time.Second, `document.querySelector("#gone").hidden && `+isLive)
	} else {
		member := `document.querySelector('#cluster-body tr[data-key="` + node + `"] .s')`
		p.Until(20*time.Second, member+`.classList.contains("bad") && document.querySelector("#problems").innerText.includes("Member `+node+` is ")`)
		told.await(t, `later it is back`)
		p.Until(20*time.Second, member+`.textContent === "alive"`)
	}
	p.Until(20*time.Second, `document.querySelector("#problems").innerText.includes("Nothing to look at")`)

	for _, c := range p.Complaints() {
		if node != "lb1" || !strings.Contains(c, "net::ERR_") {
			t.Errorf("Chromium complains: %s", c)
		}
	}
}

const isLive = `document.querySelector("#link")?.textContent.startsWith("live")`

func row(backend string) string {
	return `document.querySelector('article[data-key="web"] tr[data-key="` + backend + `"]')`
}

// lookAround clicks all that can be clicked.
func lookAround(t *testing.T, p *browser.Page) {
	t.Helper()
	for _, section := range []string{"services", "cluster", "routers", "flows", "packets", "events"} {
		p.Click(`nav a[href="#` + section + `"]`)
		p.Until(5*time.Second, `(([top, bottom]) => top < innerHeight && bottom > 0)((({top, bottom}) => [top, bottom])(document.getElementById("`+section+`").getBoundingClientRect()))`)
	}
	p.Click("#keys-button")
	p.Until(5*time.Second, `document.querySelector("#keys").open`)
	p.Click("#keys button")
	p.Until(5*time.Second, `!document.querySelector("#keys").open`)

	all := p.Eval(`document.querySelectorAll("#log li").length`)
	p.Click("#filter-text")
	for _, key := range "session up" {
		p.Press(string(key))
	}
	p.Until(5*time.Second, `[...document.querySelectorAll("#log li")].every((e) => e.textContent.includes("session up")) && document.querySelector("#log li")`)
	p.Eval(`(() => { const s = document.querySelector("#filter-level"); s.value = "error"; s.dispatchEvent(new Event("input", {bubbles: true})) })()`)
	p.Until(5*time.Second, `document.querySelector("#log-note").textContent === "No event matches."`)
	p.Eval(`(() => { document.querySelector("#filter").reset(); document.querySelector("#filter-text").dispatchEvent(new Event("input", {bubbles: true})) })()`)
	p.Until(5*time.Second, `document.querySelectorAll("#log li").length >= `+all)
}

// tale is a story as far as it was told.
type tale struct {
	mu   sync.Mutex
	text bytes.Buffer
	read int // how far await has come
}

func (l *tale) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *tale) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until the story comes to a sentence, and gives what its parentheses hold.
func (l *tale) await(t *testing.T, sentence string) string {
	t.Helper()
	pattern := regexp.MustCompile(sentence)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		at := pattern.FindSubmatchIndex(l.text.Bytes()[l.read:])
		if at != nil {
			last := at[len(at)-2:]
			found := string(l.text.Bytes()[l.read:][last[0]:last[1]])
			l.read += at[1]
			l.mu.Unlock()
			return found
		}
		l.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("the story does not come to %q:\n%s", sentence, l)
		}
	}
}
