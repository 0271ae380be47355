package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/halfproxy/halfproxy/internal/httpserver"
)

// health is the answer of /healthz, as a load balancer node gives it.
type health struct {
	Status  string   `json:"status"`  // "ok" or "unhealthy"
	Reasons []string `json:"reasons"` // why it is not ok
}

// serve answers until ctx ends.
func (b *Backend) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", b.answerHealth)
	if b.gatherer != nil {
		mux.Handle("GET /metrics", httpserver.Metrics(b.gatherer, b.log))
	}
	server := httpserver.New(mux, b.log)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	})
	err := server.Serve(b.listener)
	if !stop() {
		<-stopped // answers under way are finished
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", b.listener.Addr(), err)
}

func (b *Backend) answerHealth(w http.ResponseWriter, _ *http.Request) {
	h, code := health{"ok", []string{}}, http.StatusOK
	if reasons := b.Unhealthy(); len(reasons) > 0 {
		h, code = health{"unhealthy", reasons}, http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(h); err != nil {
		b.log.Debug("answer not delivered", "err", err)
	}
}

// healthGauge is /healthz for Prometheus.
func healthGauge(b *Backend) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "halfproxy_backend_healthy", Help: "1 while VIPs, programs and sysctls are as they have to be.",
	}, func() float64 {
		if len(b.Unhealthy()) > 0 {
			return 0
		}
		return 1
	})
}
