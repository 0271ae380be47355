package health

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/halfproxy/halfproxy/lb"
)

// maxAnswer bounds what is read of one answer, headers and body.
const maxAnswer = 64 << 10

// httpAsker asks for a page.
type httpAsker struct {
	*asker
	tls     *tls.Config // nil for http
	pattern *regexp.Regexp
	asked   *http.Request // by HTTP/1.1
	message []byte        // that asks
}

func (a *asker) http() (probe, error) {
	h := &httpAsker{asker: a}
	var err error
	if a.check.BodyPattern != "" {
		if h.pattern, err = regexp.Compile(a.check.BodyPattern); err != nil {
			return nil, fmt.Errorf("pattern of the body: %w", err)
		}
	}
	if a.check.TLS {
		protocol := "http/1.1"
		if a.check.HTTP2 {
			protocol = "h2"
		}
		if h.tls, err = a.tlsConfig(protocol); err != nil {
			return nil, err
		}
	}
	if h.asked, err = h.request(context.Background()); err != nil {
		return nil, err
	}
	h.asked.Close = true
	var message bytes.Buffer
	if err := h.asked.Write(&message); err != nil {
		return nil, err
	}
	h.message = message.Bytes()
	return h.ask, nil
}

func (h *httpAsker) ask(ctx context.Context) error {
	plain, err := h.connect(ctx, "tcp")
	if err != nil {
		return err
	}
	defer plain.Close()
	var conn net.Conn = plain
	if h.tls != nil {
		secure, err := h.handshake(ctx, plain, h.tls)
		if err != nil {
			return err
		}
		if got := secure.ConnectionState().NegotiatedProtocol; h.check.HTTP2 && got != "h2" {
			return fmt.Errorf("%s does not speak http/2: it does not choose it in the tls handshake", h.at)
		}
		conn = secure
	}
	if !h.check.HTTP2 {
		return h.get1(conn)
	}
	req, err := h.request(ctx)
	if err != nil {
		return err
	}
	return h.get2(conn, req)
}

func (h *httpAsker) request(ctx context.Context) (*http.Request, error) {
	scheme := "http"
	if h.check.TLS {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, h.check.Method, scheme+"://"+h.hostHeader()+h.check.Path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w: correct the check's path and host", h.at, err)
	}
	req.Header.Set("User-Agent", "halfproxy")
	own := make(map[string]bool)
	for _, header := range h.check.Headers {
		if name := http.CanonicalHeaderKey(header.Name); !own[name] {
			req.Header.Del(name)
			own[name] = true
		}
		req.Header.Add(header.Name, string(header.Value))
	}
	return req, nil
}

// hostHeader is the check's host, else what a browser would send: the address,
// without the port that the scheme implies and without a zone, which means nothing
// beyond this node (RFC 6874).
func (h *httpAsker) hostHeader() string {
	if h.check.Host != "" {
		return h.check.Host
	}
	host := netip.AddrPortFrom(h.at.Addr().WithZone(""), h.at.Port()).String()
	if h.check.TLS {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

// get1 speaks HTTP/1.1. It writes and reads the messages itself as http.Transport
// costs two goroutines a connection.
func (h *httpAsker) get1(conn net.Conn) error {
	if _, err := conn.Write(h.message); err != nil {
		return h.noAnswer(err)
	}
	limited := &io.LimitedReader{R: conn, N: maxAnswer}
	resp, err := readResponse(bufio.NewReaderSize(limited, 1<<10), h.asked) //nolint:bodyclose // the caller closes the connection
	if err != nil {
		if limited.N == 0 {
			return fmt.Errorf("headers from %s are longer than %d bytes", h.at, maxAnswer)
		}
		return h.noAnswer(err)
	}
	return h.judge(resp, limited)
}

// readResponse passes over interim answers (RFC 9110, section 15.2).
func readResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
}

// get2 speaks HTTP/2, by prior knowledge where there is no TLS to agree on it.
func (h *httpAsker) get2(conn net.Conn, req *http.Request) error {
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	transport := &http.Transport{
		DialContext: dial, DialTLSContext: dial, Protocols: new(http.Protocols),
		DisableCompression: true, MaxResponseHeaderBytes: maxAnswer,
	}
	transport.Protocols.SetHTTP2(true)
	transport.Protocols.SetUnencryptedHTTP2(true)
	client, err := transport.NewClientConn(req.Context(), req.URL.Scheme, h.at.AddrPort.String())
	if err != nil {
		return h.noAnswer(err)
	}
	defer client.Close()
	resp, err := client.RoundTrip(req)
	if err != nil {
		return h.noAnswer(err)
	}
	defer resp.Body.Close()
	limited := &io.LimitedReader{R: resp.Body, N: maxAnswer}
	resp.Body = io.NopCloser(limited)
	return h.judge(resp, limited)
}

// judge reads the rest of the answer, as far as limited goes.
func (h *httpAsker) judge(resp *http.Response, limited *io.LimitedReader) error {
	if !slices.ContainsFunc(h.check.Status, func(r lb.StatusRange) bool { return r.First <= resp.StatusCode && resp.StatusCode <= r.Last }) {
		return h.wrongStatus(resp.StatusCode)
	}
	var body bytes.Buffer
	into := io.Discard
	if h.check.Body != "" || h.pattern != nil {
		into = &body
	}
	if _, err := io.Copy(into, resp.Body); err != nil && limited.N > 0 {
		if isTimeout(err) {
			return fmt.Errorf("answer from %s not complete within %v", h.at, h.check.Timeout)
		}
		return fmt.Errorf("answer from %s breaks off: %w", h.at, cause(err))
	}
	part := ""
	if limited.N == 0 {
		part = fmt.Sprintf(" in its first %d bytes", maxAnswer)
	}
	if !bytes.Contains(body.Bytes(), []byte(h.check.Body)) {
		return fmt.Errorf("body from %s does not contain %q%s", h.at, quote(h.check.Body), part)
	}
	if h.pattern != nil && !h.pattern.Match(body.Bytes()) {
		return fmt.Errorf("body from %s does not match %q%s", h.at, quote(h.check.BodyPattern), part)
	}
	return nil
}

func (h *httpAsker) wrongStatus(status int) error {
	usual := []lb.StatusRange{{First: 200, Last: 299}}
	switch {
	case !slices.Equal(h.check.Status, usual):
		var wanted []string
		for _, r := range h.check.Status {
			wanted = append(wanted, r.String())
		}
		return fmt.Errorf("http status %d from %s, the check wants %s", status, h.at, strings.Join(wanted, ","))
	case status >= 300 && status <= 399:
		return fmt.Errorf("http status %d from %s: a redirect is not followed, give the check the path that it leads to", status, h.at)
	}
	return fmt.Errorf("http status %d from %s", status, h.at)
}

func (h *httpAsker) noAnswer(err error) error {
	if refused := h.alert(err); refused != nil {
		return refused
	}
	var op *net.OpError
	switch {
	case isTimeout(err):
		return fmt.Errorf("no answer from %s within %v", h.at, h.check.Timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &op):
		return fmt.Errorf("connection closed by %s before it answered", h.at)
	case h.check.HTTP2:
		return fmt.Errorf("answer from %s is not http/2", h.at)
	}
	// The cause would quote the answer, which may be of any length.
	return fmt.Errorf("answer from %s is not http", h.at)
}
