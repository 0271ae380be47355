package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/halfproxy/halfproxy/internal/httpserver"
)

// Client asks a running node through its admin socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client of the node whose admin socket is at path socket.
// It connects anew for each question.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http = http.Client{
		Timeout: httpserver.Patience,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		},
	}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", c.socket)
}

// Status asks how the node and its cluster stand.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, "status", statusPath)
}

// Reload makes the node take its configuration file anew. The error has every
// fault of the file; the node then goes on with what it had.
func (c *Client) Reload(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, reloadPath, nil)
	return err
}

// Order gives the node an order, of which Kind, Name, Action, Weight, By and Until
// count. It is in force there when there is no error, and on its way to the others.
func (c *Client) Order(ctx context.Context, o Order) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, ordersPath, bytes.NewReader(body))
	return err
}

// Trace asks where a flow goes, and why.
func (c *Client) Trace(ctx context.Context, f Flow) (Trace, error) {
	return ask[Trace](ctx, c, "trace", tracePath+"?"+f.query().Encode())
}

// ask gives what the node answers to a question.
func ask[T any](ctx context.Context, c *Client, what, path string) (answer T, err error) {
	body, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("read the %s from %s: %w: is the daemon of the same version as this program?", what, c.socket, err)
	}
	return answer, nil
}

func (c *Client) do(ctx context.Context, method, path string, send io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://halfproxy"+path, send)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	return c.read(req, resp)
}

// read gives the answer, or the error that it is.
func (c *Client) read(req *http.Request, resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.explain(err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent:
		return body, nil
	case http.StatusUnprocessableEntity: // refused, in words made for people
		return nil, errors.New(strings.TrimSpace(string(body)))
	}
	return nil, fmt.Errorf("%s %s on %s: %s: %s: is the daemon of the same version as this program?",
		req.Method, req.URL.Path, c.socket, resp.Status, strings.TrimSpace(string(body)))
}

// explain adds what a person can do about err.
func (c *Client) explain(err error) error {
	// Its text has a made-up host's URL, which would puzzle.
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	switch timeout, _ := errors.AsType[net.Error](err); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: is halfproxy running? Another socket is chosen with --socket PATH", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens there any more: is halfproxy running? Another socket is chosen with --socket PATH", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: use sudo, or join the group that owns the socket (`ls -l %s`)", err, c.socket)
	case timeout != nil && timeout.Timeout():
		return fmt.Errorf("%w: halfproxy runs but does not answer on %s: see its log", err, c.socket)
	}
	return fmt.Errorf("ask halfproxy on %s: %w", c.socket, err)
}
