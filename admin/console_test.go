package admin_test

import (
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/halfproxy/halfproxy/admin"
	"github.com/halfproxy/halfproxy/events"
	"github.com/halfproxy/halfproxy/internal/browser"
	"github.com/halfproxy/halfproxy/lb"
)

var pictures = flag.String("pictures", "", "`DIR` for pictures of the console")

// stage is a node whose status a test changes while the console shows it.
type stage struct {
	node
	log *slog.Logger

	mu     sync.Mutex
	status admin.Status
}

func newStage(t *testing.T, st admin.Status) *stage {
	t.Helper()
	s := &stage{status: lately(st)}
	ring := events.NewRing(1000)
	s.log = slog.New(ring.Handler(slog.DiscardHandler))
	cfg := config(t)
	cfg.Events = ring.After
	cfg.Ready = func() []string { return st.Node.Ready.Reasons }
	begun := time.Now()
	cfg.Status = func() admin.Status {
		s.mu.Lock()
		defer s.mu.Unlock()
		st := s.status
		st.Time = time.Now()
		passed := uint64(time.Since(begun) / time.Millisecond)
		st.Services = append(admin.List[admin.Service]{}, st.Services...)
		for i := range st.Services {
			backends := append(admin.List[admin.Backend]{}, st.Services[i].Backends...)
			for j := range backends {
				if backends[j].State == "up" {
					backends[j].Packets += passed * uint64(j+1)
				}
			}
			st.Services[i].Backends = backends
		}
		return st
	}
	cfg.Traffic = func() (admin.Traffic, error) {
		passed := uint64(time.Since(begun) / time.Millisecond)
		return admin.Traffic{Forwarded: passed, Bytes: 500 * passed, Dropped: passed / 100}, nil
	}
	s.node = start(t, cfg)
	return s
}

// lately is st as if it were now.
func lately(st admin.Status) admin.Status {
	passed := time.Since(st.Time)
	shift := func(times ...*time.Time) {
		for _, t := range times {
			if !t.IsZero() {
				*t = t.Add(passed)
			}
		}
	}
	shift(&st.Node.Started)
	for _, s := range st.Services {
		if t := s.Transition; t != nil {
			shift(&t.Since, &t.Until)
		}
	}
	for i := range st.BGP {
		shift(&st.BGP[i].Since)
	}
	for i := range st.Orders {
		shift(&st.Orders[i].At, &st.Orders[i].Until)
	}
	return st
}

func (s *stage) change(change func(*admin.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// open shows the console of s, and has the test fail for all that Chromium complains of
// and is not expected.
func open(t *testing.T, s *stage, expected ...string) *browser.Page {
	t.Helper()
	p := browser.Open(t, (*exec.Cmd).Start)
	t.Cleanup(func() {
		for _, c := range p.Complaints() {
			if !slices.ContainsFunc(expected, func(e string) bool { return strings.Contains(c, e) }) {
				t.Errorf("Chromium complains: %s", c)
			}
		}
	})
	p.Resize(1400, 1000)
	p.Go(s.url + "/")
	p.Until(30*time.Second, `document.querySelector("#link")?.textContent.startsWith("live")`)
	return p
}

func (s *stage) picture(t *testing.T, p *browser.Page, name string) {
	t.Helper()
	if *pictures == "" {
		return
	}
	if err := os.WriteFile(*pictures+"/"+name+".png", p.Picture(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTheConsoleShowsHowThingsStand(t *testing.T) {
	s := newStage(t, troubled())
	s.log.With("part", "control").Warn("vip held back", "vip", "203.0.113.53", "cause", "no_backend")
	p := open(t, s)

	text := p.Eval("document.body.innerText")
	for _, want := range []string{
		"lb1", "not ready", // the node
		"things to look at", "dns is not announced: 0 of 1 backends up, 1 needed", `web: web2 is down: http: status 503 "Service Unavailable", want 2xx`,
		"Router 2001:db8:1::254 is active: the peer refuses the session", "Member lb2 is dead", "The configuration differs on lb3",
		"weight 50 of backend web/web2", "bob on lb2",
		"203.0.113.10, 2001:db8::10 · tcp/80 tcp/443 udp/443 · l2 · table 60303ae2", "no flows are at it: safe to stop", "12 flows left here; held by lb1, lb2: not safe to stop",
		"1911 slots after 3 changes", "lb3 sees", "blind: does not vote",
		"203.0.113.10/32", "2001:db8::10/128 going away", "2001:db8::/48", "0 of 3 VIPs", `203.0.113.53: service "mail": no backend is up`, "12 of 1,048,576 flow records", "not_vip",
		"vip held back", "no_backend",
	} {
		if !strings.Contains(strings.ReplaceAll(text, "\u00a0", " "), want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}

	s.change(func(st *admin.Status) {
		st.Services = append(admin.List[admin.Service]{}, st.Services...)
		st.Services[0].Backends = append(admin.List[admin.Backend]{}, st.Services[0].Backends...)
		st.Services[0].Backends[0].State = "down"
		st.Services[0].Backends[0].LastError = "no answer within 1s"
	})
	s.log.Warn("backend changed", "backend", "web1", "state", "down")
	row := `document.querySelector('[data-key="web"] tr[data-key="web1"]')`
	took := p.Until(30*time.Second, row+`.querySelector(".s.bad")?.textContent === "down" && `+row+`.innerText.includes("no answer within 1s")`)
	t.Logf("a backend that goes down is shown after %v", took.Round(time.Millisecond))
	p.Until(30*time.Second, `document.querySelector("#log li")?.textContent.includes("backend changed")`)

	p.Until(30*time.Second, `document.querySelector("#traffic svg .chart-line")`)
	p.Until(30*time.Second, `/forwarded: (9\d\d|1\d\d\d|1\.\d k|2k) packets/.test(document.querySelector("#traffic").textContent)`)
	s.picture(t, p, "light")
	p.Prefer("color-scheme", "dark")
	s.picture(t, p, "dark")
}

func TestTheConsoleTakesTextsForTexts(t *testing.T) {
	const evil = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"'>&amp;{{7*7}}`
	st := troubled()
	st.Node.Name, st.Node.Version = evil, evil
	st.Members[0].Name, st.Orders[0].By = evil, evil
	st.Services[0].Name, st.Services[0].Reason, st.Services[0].Panic = evil, evil, evil
	for i := range st.Services[0].Backends {
		b := &st.Services[0].Backends[i]
		b.Name, b.LastError, b.Order = evil+fmt.Sprint(i), evil, evil
		b.Seen = map[string]string{evil: evil}
	}
	st.BGP[1].LastError, st.BGP[1].State = evil, evil
	st.Verdicts[0].Name = evil
	s := newStage(t, st)
	s.log.With("part", evil).Error(evil, evil, evil)
	p := open(t, s)
	p.Until(30*time.Second, `document.querySelector("#log li")`)
	p.Press("?")
	time.Sleep(1500 * time.Millisecond) // for the page to be drawn once more
	if got := p.Eval(`document.title`); strings.HasPrefix(got, "owned") {
		t.Errorf("a name was run as a script")
	}
	if got := p.Eval(`document.querySelectorAll("img, main script, iframe, [onerror]").length`); got != "0" {
		t.Errorf("got %s elements made of names, want none", got)
	}
	if got := p.Eval(`document.querySelector("#services h3").textContent`); got != evil {
		t.Errorf("service: got %q, want it as it is", got)
	}
}

// crowded has more than fits anywhere.
func crowded() admin.Status {
	st := wide()
	web := &st.Services[0]
	for i := range 200 {
		web.Backends = append(web.Backends, admin.Backend{
			Name: fmt.Sprintf("storefront-frontend-%04d", i), Address: netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i%250 + 1)}),
			Weight: 100, WeightNow: 100, State: "up", HealthyObservers: 3, Observers: 3,
			Seen: map[string]string{"lb1": "up", "lb2": "up", "lb3": "up"},
		})
	}
	st.BGP[0].Routes = nil
	for i := range 60 {
		st.BGP[0].Routes = append(st.BGP[0].Routes, admin.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)})
	}
	st.Services = append(st.Services, admin.Service{Name: strings.Repeat("long-", 30), VIPs: []lb.VIP{lb.MustParseVIP("203.0.113.99")}, Ports: []string{"tcp/1-65535"}, Forward: "gue", Reason: strings.Repeat("x", 300)})
	return st
}

func TestTheConsoleFitsAPhone(t *testing.T) {
	s := newStage(t, crowded())
	s.log.Warn("vip held back", "reason", strings.Repeat("y", 300))
	p := open(t, s)
	for _, width := range []int{360, 600, 1001, 1100, 1920} {
		p.Resize(width, 740)
		time.Sleep(200 * time.Millisecond)
		if got := p.Eval(`document.documentElement.scrollWidth`); got != fmt.Sprint(width) {
			wide := p.Eval(`[...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map((e) => e.outerHTML.slice(0, 120)).join("\n")`)
			t.Errorf("at %d pixels the page is %s wide:\n%s", width, got, wide)
		}
		s.picture(t, p, fmt.Sprint("wide", width))
	}
	if got := p.Eval(`document.querySelectorAll('[data-unfold="web"]').length + " " + document.querySelectorAll('article[data-key="web"] tbody tr').length`); got != "1 24" {
		t.Errorf("of many backends: got %s rows, want 24 and a button for the rest", got)
	}
	p.Eval(`document.querySelector('[data-unfold="web"]').click()`)
	if got := p.Eval(`document.querySelectorAll('article[data-key="web"] tbody tr').length`); got != "204" {
		t.Errorf("unfolded: got %s rows, want 204", got)
	}
}

func TestTheConsoleIsUsedByKeys(t *testing.T) {
	s := newStage(t, troubled())
	for i := range 3 {
		s.log.Info("something", "i", i)
	}
	s.log.Warn("something else")
	p := open(t, s)
	p.Until(30*time.Second, `document.querySelectorAll("#log li").length === 4`)

	p.Press("Tab")
	if got := p.Eval(`document.activeElement.className`); got != "skip" {
		t.Errorf("the first thing that Tab reaches: got %q, want the link to the content", got)
	}
	p.Press("3")
	if got := p.Eval(`document.activeElement.id`); got != "routers" {
		t.Errorf("3: got %q, want the routers", got)
	}
	p.Press("/")
	for _, key := range "else" {
		p.Press(string(key))
	}
	p.Until(30*time.Second, `document.querySelectorAll("#log li").length === 1`)
	time.Sleep(1500 * time.Millisecond) // the page is drawn once more
	if got := p.Eval(`document.activeElement.value`); got != "else" {
		t.Errorf("the filter after news: got %q, want what was typed", got)
	}
	p.Press("Escape")
	p.Press("?")
	p.Until(30*time.Second, `document.querySelector("#keys").open`)
	p.Press("Escape")
	p.Until(30*time.Second, `!document.querySelector("#keys").open`)
}

// Contrast by WCAG 2.1: of every text with what is behind it.
const contrast = `(() => {
  const parse = (c) => (c.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (c) => parse(c).slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (parse(c).length === 3 || parse(c)[3] > 0) return c; } return "rgb(255, 255, 255)"; };
  const bad = new Set();
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.closest("dialog, noscript, script, .skip, svg") || e.offsetParent === null) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.add(e.tagName + "." + e.className + " " + ratio.toFixed(2));
  }
  return [...bad].join("\n");
})()`

func TestTheConsoleCanBeReadByAnyone(t *testing.T) {
	s := newStage(t, troubled())
	s.log.Error("all levels")
	s.log.Info("all levels")
	p := open(t, s)
	p.Until(30*time.Second, `document.querySelectorAll("#log li").length === 2`)
	for _, scheme := range []string{"light", "dark"} {
		p.Prefer("color-scheme", scheme)
		if got := p.Eval(contrast); got != "" {
			t.Errorf("in the %s, too little contrast of:\n%s", scheme, got)
		}
	}
	for what, expression := range map[string]string{
		"one main part":                `document.querySelectorAll("main").length === 1 && document.querySelectorAll("h1").length === 1`,
		"names of all sections":        `[...document.querySelectorAll("section")].every((s) => s.getAttribute("aria-label") || document.getElementById(s.getAttribute("aria-labelledby"))?.textContent)`,
		"names of pictures":            `[...document.querySelectorAll("svg")].every((s) => s.getAttribute("aria-hidden") || s.getAttribute("aria-label"))`,
		"labels of fields":             `[...document.querySelectorAll("input, select")].every((i) => i.labels.length === 1)`,
		"words beside all shapes":      `[...document.querySelectorAll(".s")].every((s) => s.textContent.trim())`,
		"each id once":                 `new Set([...document.querySelectorAll("[id]")].map((e) => e.id)).size === document.querySelectorAll("[id]").length`,
		"as many cells as headings":    `[...document.querySelectorAll("table")].every((t) => [...t.tBodies[0].rows].every((r) => r.cells.length === t.tHead.rows[0].cells.length))`,
		"a language and a description": `document.documentElement.lang === "en" && document.title.includes("lb1")`,
	} {
		if got := p.Eval(expression); got != "true" {
			t.Errorf("%s: got %s", what, got)
		}
	}
	p.Prefer("reduced-motion", "reduce")
	if got := p.Eval(`getComputedStyle(document.documentElement).scrollBehavior + getComputedStyle(document.querySelector("main")).transitionDuration`); got != "auto0s" {
		t.Errorf("with reduced motion: got %s, want none", got)
	}
}

func TestTheConsoleSaysWhenTheNodeIsGoneAndComesBackByItself(t *testing.T) {
	s := newStage(t, troubled())
	p := open(t, s, "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	p.Until(30*time.Second, `!document.querySelector("#gone").hidden && document.querySelector("#gone").textContent.includes("lb1 does not answer") && document.querySelector("main.stale")`)
	s.picture(t, p, "gone")

	cfg := config(t)
	cfg.Listen = netip.MustParseAddrPort(strings.TrimPrefix(s.url, "http://"))
	cfg.Status = func() admin.Status { st := troubled(); st.Time, st.Node.Version = time.Now(), "0.2.0"; return st }
	start(t, cfg)
	p.Until(30*time.Second, `document.querySelector("#gone").hidden && document.querySelector("#facts").textContent.includes("0.2.0")`)
}

func TestTheConsoleComesFromTheBinaryAlone(t *testing.T) {
	n := start(t, config(t))
	for path, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/console/console.js": "text/javascript; charset=utf-8",
		"/console/console.css": "text/css; charset=utf-8", "/console/icon.svg": "image/svg+xml",
	} {
		resp, body := ask(t, http.DefaultClient, "GET", n.url+path)
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != contentType {
			t.Errorf("%s: got %d %s, want 200 %s", path, resp.StatusCode, got, contentType)
		}
		policy := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("%s: got policy %q, want a strict one", path, policy)
		}
		for _, elsewhere := range []string{"//fonts.", "https://", "http://"} {
			if strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), elsewhere) {
				t.Errorf("%s: got %s in it, want nothing from elsewhere", path, elsewhere)
			}
		}
		req, err := http.NewRequest("GET", n.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("If-None-Match", resp.Header.Get("ETag"))
		again, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		again.Body.Close()
		if again.StatusCode != http.StatusNotModified {
			t.Errorf("%s asked for again: got %d, want 304", path, again.StatusCode)
		}
	}
}
