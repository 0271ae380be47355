package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/events"
	"github.com/halfproxy/halfproxy/internal/httpserver"
	"github.com/halfproxy/halfproxy/lb"
)

// Config is what a Server answers with. The functions are called for each
// request, several at once.
type Config struct {
	Listen netip.AddrPort // http.listen; the zero value: no TCP listener
	Socket string         // path of the admin socket; empty: none

	Status   func() Status
	Health   func() (reasons []string) // why the node cannot forward; none: healthy
	Ready    func() (reasons []string) // why it should not get traffic; none: ready
	Gatherer prometheus.Gatherer

	// Traffic is called every other second. Nil: there is none to be shown.
	Traffic func() (Traffic, error)

	// Events gives what has happened with a greater number than the given one, the
	// oldest first, and a channel that is closed when there is more.
	Events func(after uint64) ([]events.Event, <-chan struct{})

	// Trace asks the program where a flow goes. It loads the program anew for
	// each question: that is for those who may use the socket.
	Trace func(Flow) (Trace, error)

	// Capture hands frames to the sink until ctx ends, or the request has it
	// enough. It changes what the program does: that, too, is for the socket.
	Capture func(context.Context, CaptureRequest, CaptureSink) error

	// Settings gives the configuration that the node runs by. VIPs and names of files
	// are for those who may use the socket; secrets are sealed with the salt.
	Settings func(salt []byte) []Setting

	// Reload takes the configuration file anew. Its error, on as many lines as
	// there are faults, is shown to whoever asked. ctx ends when that one goes
	// away, and when the server stops.
	Reload func(ctx context.Context) error

	// Order takes an order. Its error, in words for people, is shown to whoever gave it.
	Order func(ctx context.Context, o lb.Order) error

	Log *slog.Logger
}

// Server serves the HTTP endpoint and the admin socket.
type Server struct {
	log       *slog.Logger
	stream    *stream
	listeners []net.Listener
	handlers  []http.Handler // one a listener
}

const (
	statusPath = "/api/v1/status"
	reloadPath = "/api/v1/reload"

	grace = 3 * time.Second // for answers under way when the server stops
)

// New binds both listeners, so that a taken port is known before anything else
// begins. They are released by Run when it returns, or by Close.
func New(cfg Config) (*Server, error) {
	s := &Server{log: cfg.Log.With("part", "admin")}
	s.stream = newStream(cfg, cfg.whole, s.log)
	if cfg.Listen.IsValid() {
		l, err := httpserver.Listen(cfg.Listen)
		if err != nil {
			return nil, err
		}
		s.add(l, readOnly(s.reads(cfg)))
	}
	if cfg.Socket != "" {
		l, err := listenSocket(cfg.Socket)
		if err != nil {
			s.Close()
			return nil, err
		}
		mux := s.reads(cfg)
		mux.HandleFunc("POST "+reloadPath, func(w http.ResponseWriter, r *http.Request) { s.reload(w, r, cfg.Reload) })
		mux.HandleFunc("POST "+ordersPath, func(w http.ResponseWriter, r *http.Request) { s.order(w, r, cfg.Order) })
		mux.HandleFunc("GET "+settingsPath, func(w http.ResponseWriter, r *http.Request) { s.settings(w, r, cfg.Settings) })
		mux.HandleFunc("GET "+tracePath, func(w http.ResponseWriter, r *http.Request) { s.trace(w, r, cfg.Trace) })
		mux.HandleFunc("POST "+capturePath, func(w http.ResponseWriter, r *http.Request) { s.capture(w, r, cfg) })
		s.add(l, mux)
	}
	return s, nil
}

func (s *Server) add(l net.Listener, h http.Handler) {
	s.listeners, s.handlers = append(s.listeners, l), append(s.handlers, h)
}

// Close releases what New bound, for a caller that does not come to Run.
func (s *Server) Close() {
	for _, l := range s.listeners {
		l.Close() // removes the socket's file, too
	}
}

// Run serves until ctx ends, lets answers under way finish and releases the
// listeners.
func (s *Server) Run(ctx context.Context) error {
	var (
		running sync.WaitGroup
		servers []*http.Server
		failed  = make(chan error, len(s.listeners))
	)
	for i, l := range s.listeners {
		srv := httpserver.New(s.handlers[i], s.log)
		srv.BaseContext = func(net.Listener) context.Context { return ctx }
		srv.DisableGeneralOptionsHandler = true // it answers "OPTIONS *" before readOnly can
		servers = append(servers, srv)
		running.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
		})
		s.log.Info("listening", "address", l.Addr().String())
	}

	telling, enough := context.WithCancel(ctx)
	running.Go(func() { s.stream.run(telling) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	enough()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	for _, srv := range servers {
		if srv.Shutdown(last) != nil {
			srv.Close()
		}
	}
	running.Wait()
	return err
}

// reads routes what may be asked by anyone who reaches a listener.
func (s *Server) reads(cfg Config) *http.ServeMux {
	answerHealth := func(current func() Health) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			h, code := current(), http.StatusOK
			if len(h.Reasons) > 0 {
				code = http.StatusServiceUnavailable
			}
			s.answer(w, code, h)
		}
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", answerHealth(cfg.health))
	mux.HandleFunc("GET /readyz", answerHealth(cfg.ready))
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, _ *http.Request) {
		s.answer(w, http.StatusOK, cfg.whole())
	})
	mux.HandleFunc("GET "+eventsPath, func(w http.ResponseWriter, r *http.Request) { s.events(w, r, cfg.Events) })
	mux.HandleFunc("GET /api/v1/stream", s.stream.serve)
	s.console(mux)
	mux.Handle("GET /metrics", httpserver.Metrics(cfg.Gatherer, s.log))
	return mux
}

func (cfg Config) health() Health { return newHealth("unhealthy", cfg.Health()) }
func (cfg Config) ready() Health  { return newHealth("not ready", cfg.Ready()) }

// whole is the status with what only the server fills in.
func (cfg Config) whole() Status {
	st := cfg.Status()
	st.Node.Health, st.Node.Ready = cfg.health(), cfg.ready()
	return st
}

func newHealth(otherwise string, reasons []string) Health {
	if len(reasons) == 0 {
		return Health{Status: "ok"}
	}
	return Health{Status: otherwise, Reasons: reasons}
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request, reload func(context.Context) error) {
	if err := reload(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) trace(w http.ResponseWriter, r *http.Request, trace func(Flow) (Trace, error)) {
	query := r.URL.Query()
	f, err := ParseFlow(query.Get("protocol"), query.Get("source"), query.Get("destination"), query.Get("quic_cid"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	t, err := trace(f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	s.answer(w, http.StatusOK, t)
}

func (s *Server) answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if err := writeJSON(w, v); err != nil {
		s.log.Debug("answer not delivered", "err", err)
	}
}

// asked reads what a client asks for into v. False: it was told what is wrong.
func asked(w http.ResponseWriter, r *http.Request, what string, v any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		http.Error(w, fmt.Sprintf("read the %s: %v", what, err), http.StatusBadRequest)
		return false
	}
	return true
}

// readOnly stands before the routes, so that no route added later can change
// anything over TCP.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only reads are served here: changes go through the admin socket", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}
