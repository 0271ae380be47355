package lab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/halfproxy/halfproxy/internal/netns"
)

const servicePort = 80 // which a URL need not name

// Backend is a server with the VIPs on its loopback. It answers
//
//	/                          "hello from b1"
//	/healthz                   "ok"
//	/download?bytes=N&rate=N   content, paced at that many bytes a second
//	/upload                    how many bytes came and their SHA-256
//
// always with X-Backend, its name, and with X-Remote and X-Local, the
// addresses that its socket sees.
type Backend struct {
	Name string
	Addrs

	lab *Lab
	ns  *netns.NS

	mu     sync.Mutex
	server *http.Server // nil while dead
	served chan struct{}
	cut    bool
}

func (l *Lab) buildBackends() error {
	for i := range l.options.Backends {
		name := fmt.Sprintf("b%d", i+1)
		ns, err := l.buildBackend(name, i+1)
		if err != nil {
			return err
		}
		b := &Backend{Name: name, Addrs: backendAddrs(i + 1), lab: l, ns: ns}
		if err := b.Start(); err != nil {
			return err
		}
		l.backends = append(l.backends, b)
		l.onClose(func() error { b.Kill(); return nil })
	}
	return nil
}

// Start makes the server listen. One that does already is left alone.
func (b *Backend) Start() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server != nil {
		return nil
	}
	listener, err := b.ns.Listen("tcp", fmt.Sprintf("[::]:%d", servicePort))
	if err != nil {
		return fmt.Errorf("backend %s: %w", b.Name, err)
	}
	server, served := &http.Server{Handler: b.handler()}, make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			b.lab.log.Error("backend serves no more", "backend", b.Name, "err", err)
		}
	}()
	b.server, b.served = server, served
	return nil
}

// Kill ends the server as the death of its process would: its connections
// break, and nobody listens any more.
func (b *Backend) Kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server == nil {
		return
	}
	b.server.Close() // gives the listener's error, which is of no use to anybody
	<-b.served
	b.server = nil
}

// Running tells whether the server can be reached.
func (b *Backend) Running() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.server != nil && !b.cut
}

// CutLink takes the backend off the switch, as a power loss does. MendLink
// undoes it.
func (b *Backend) CutLink() error { return b.setLink(true, netlink.LinkSetDown) }

// MendLink undoes CutLink.
func (b *Backend) MendLink() error { return b.setLink(false, netlink.LinkSetUp) }

func (b *Backend) setLink(cut bool, set func(netlink.Link) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = cut
	return b.lab.setPort(b.Name, set)
}

func (b *Backend) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", b.Name)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /download", download)
	mux.HandleFunc("POST /upload", upload)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local := r.Context().Value(http.LocalAddrContextKey).(net.Addr) // net/http puts it there
		w.Header().Set("X-Backend", b.Name)
		w.Header().Set("X-Remote", r.RemoteAddr)
		w.Header().Set("X-Local", local.String())
		mux.ServeHTTP(w, r)
	})
}

func download(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil {
		http.Error(w, "bytes: "+err.Error(), http.StatusBadRequest)
		return
	}
	rate, err := strconv.ParseInt(r.FormValue("rate"), 10, 64)
	if r.FormValue("rate") != "" && err != nil {
		http.Error(w, "rate: "+err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	stream := &paced{reader: io.LimitReader(new(content), size), rate: rate}
	// Each portion leaves at once. A client that goes away ends the copying, and
	// is no longer there to be told of an error.
	_, _ = io.Copy(flushing{w, http.NewResponseController(w)}, stream)
}

type flushing struct {
	w       io.Writer
	control *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	return n, errors.Join(err, f.control.Flush())
}

func upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%d %x\n", n, hash.Sum(nil))
}
