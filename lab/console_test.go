package lab

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/internal/browser"
)

var consolePicture = flag.String("console-picture", "", "`FILE` for a picture of a node's console")

// A person looks at lb1 while b2 dies, and sees it, and what came of it.
func TestTheConsoleShowsABackendDie(t *testing.T) {
	l := start(t, Options{Nodes: 3, Backends: 4})
	node := l.Nodes()[0]
	p := browser.Open(t, node.ns.Start)
	p.Resize(1400, 1180)
	p.Go("http://" + httpListen + "/")
	p.Until(30*time.Second, `document.querySelector("#link")?.textContent.startsWith("live")`)
	text := p.Eval("document.body.innerText")
	for _, want := range []string{"Nothing to look at", "4 of 4 backends up", "3 of 3 in sight", "10.2.0.1/32", "2001:db8:2::1/128", "session up", "announced"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}

	load := l.startLoad(t.Context(), workers, workerPause)
	defer load.stop()
	row := func(backend string) string {
		return `document.querySelector('article[data-key="web"] tr[data-key="` + backend + `"]')`
	}
	p.Until(10*time.Second, row("b2")+`.querySelector('[data-label="Traffic now"]').innerText.match(/^[1-9]/)`)
	if *consolePicture != "" {
		time.Sleep(45 * time.Second) // for something to be seen of the last minutes
	}
	l.Backends()[1].Kill()
	took := p.Until(10*time.Second, row("b2")+`.querySelector(".s.bad")?.textContent === "down"`)
	t.Logf("the backend was shown as down %v after it died", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("shown after %v, want 3 s at most", took)
	}
	p.Until(10*time.Second, `document.querySelector("#problems").innerText.includes("web: b2 is down: ")`)
	p.Until(10*time.Second, `document.querySelector("#log").innerText.includes("backend is down for this node")`)
	p.Until(10*time.Second, `[...`+row("b2")+`.querySelectorAll("td .bad")].filter((e) => e.textContent === "down").length >= 3`) // by the others, too
	p.Until(10*time.Second, row("b2")+`.querySelector('[data-label="Traffic now"]').innerText.match(/^0\/s/)`)
	if *consolePicture != "" {
		p.Prefer("color-scheme", "dark")
		if err := os.WriteFile(*consolePicture, p.Picture(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range p.Complaints() {
		t.Errorf("Chromium complains: %s", c)
	}
}
