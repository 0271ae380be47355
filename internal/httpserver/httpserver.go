// Package httpserver is what the HTTP endpoints of a node and of a backend have in common.
package httpserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Patience is for one answer, at either end.
const Patience = 30 * time.Second

// Listen binds the address of http.listen.
func Listen(address netip.AddrPort) (net.Listener, error) {
	network := "tcp"
	if address.Addr().Is4() {
		network = "tcp4" // or 0.0.0.0 would mean IPv6 as well
	}
	l, err := net.Listen(network, address.String())
	if err == nil {
		return l, nil
	}
	remedy := "change http.listen"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		remedy = "another program has the port: stop it (`ss -ltnp` names it) or change http.listen"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		remedy = "this host does not have the address: change http.listen"
	}
	return nil, fmt.Errorf("http.listen: %w: %s", err, remedy)
}

// New gives a server that no client can hold up.
func New(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      Patience,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
	}
}

// Metrics serves /metrics. One counter that cannot be read does not hide all others.
func Metrics(gatherer prometheus.Gatherer, log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError,
	})
}
