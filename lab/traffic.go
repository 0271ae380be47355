package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"
)

// request is one that was made, and what became of it.
type request struct {
	begun, ended time.Time
	backend      string // that answered
	err          error
}

// load is a steady stream of requests to the VIPs, each on a connection of its
// own.
type load struct {
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu       sync.Mutex
	requests []request // in the order in which they ended
}

// requestTimeout is a user's patience: long enough for TCP to send again what
// was lost, more than once.
const requestTimeout = 5 * time.Second

// startLoad has each worker make a request, alternately to the IPv4 and the
// IPv6 VIP, and pause, until stop.
func (l *Lab) startLoad(ctx context.Context, workers int, pause time.Duration) *load {
	ctx, cancel := context.WithCancel(ctx)
	load := &load{cancel: cancel}
	client := l.Client()
	client.Timeout = requestTimeout
	for w := range workers {
		load.workers.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				// A request under way when stop is called ends by itself.
				r := get(context.WithoutCancel(ctx), client, URL(VIPs.All()[i%2], "/"))
				load.mu.Lock()
				load.requests = append(load.requests, r)
				load.mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	return load
}

func get(ctx context.Context, client *http.Client, url string) request {
	r := request{begun: time.Now()}
	r.backend, r.err = hello(ctx, client, url)
	r.ended = time.Now()
	return r
}

func hello(ctx context.Context, client *http.Client, url string) (backend string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	backend = resp.Header.Get("X-Backend")
	if want := fmt.Sprintf("hello from %s\n", backend); resp.StatusCode != http.StatusOK || string(body) != want {
		return backend, fmt.Errorf("%s: %s: got %q, want %q", url, resp.Status, body, want)
	}
	return backend, nil
}

// stop ends the load once the requests under way have ended.
func (ld *load) stop() {
	ld.cancel()
	ld.workers.Wait()
}

// between gives the requests that were under way at any time from one moment to
// another.
func (ld *load) between(from, to time.Time) []request {
	ld.mu.Lock()
	defer ld.mu.Unlock()
	var found []request
	for _, r := range ld.requests {
		if !r.ended.Before(from) && !r.begun.After(to) {
			found = append(found, r)
		}
	}
	return found
}

// since gives the requests that began after a moment and have ended.
func (ld *load) since(from time.Time) []request {
	ld.mu.Lock()
	defer ld.mu.Unlock()
	var found []request
	for _, r := range ld.requests {
		if r.begun.After(from) {
			found = append(found, r)
		}
	}
	return found
}

func failures(requests []request) []request {
	var failed []request
	for _, r := range requests {
		if r.err != nil {
			failed = append(failed, r)
		}
	}
	return failed
}

// transfer is a long download, its content checked as it comes.
type transfer struct {
	port    uint16 // of the client
	backend string
	done    chan struct{} // closed at its end, when err is set
	err     error
}

// startDownloads begins n downloads, alternately by IPv4 and IPv6, each paced
// to take that long, and returns when all have begun to receive.
func (l *Lab) startDownloads(ctx context.Context, n int, rate int64, length time.Duration) ([]*transfer, error) {
	size := rate * int64(length/time.Millisecond) / 1000
	path := fmt.Sprintf("/download?bytes=%d&rate=%d", size, rate)
	client := l.Client()
	all := make([]*transfer, n)
	errs := make([]error, n)
	var starting sync.WaitGroup
	for i := range n {
		starting.Go(func() { all[i], errs[i] = startDownload(ctx, client, URL(VIPs.All()[i%2], path), size) })
	}
	starting.Wait()
	return all, errors.Join(errs...)
}

func startDownload(ctx context.Context, client *http.Client, url string, size int64) (*transfer, error) {
	t := &transfer{done: make(chan struct{})}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		t.port = info.Conn.LocalAddr().(*net.TCPAddr).AddrPort().Port() // a VIP is reached by TCP
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req) //nolint:bodyclose // the goroutine below closes it, when all has come
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	t.backend = resp.Header.Get("X-Backend")
	go func() {
		defer close(t.done)
		defer resp.Body.Close()
		n, err := io.Copy(new(content), resp.Body)
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes came of %d", n, size)
		}
		t.err = err
	}()
	return t, nil
}

// wait waits for the end of the download and gives its error.
func (t *transfer) wait() error {
	<-t.done
	return t.err
}
