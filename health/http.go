package health

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/halfproxy/halfproxy/lb"
)

// maxAnswer bounds what is read of one answer, headers and body.
const maxAnswer = 64 << 10

// getHTTP asks for the check's path over conn and judges the answer.
//
// It writes and reads the messages itself as http.Transport detaches its dials
// from the request's context: those to a silent backend would go on and pile
// up behind probes that have long timed out.
func getHTTP(conn net.Conn, at endpoint, check lb.Check) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+hostHeader(at.AddrPort)+check.Path, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w: correct the check's path", at, err)
	}
	req.Header.Set("User-Agent", "halfproxy")
	req.Close = true
	if err := req.Write(conn); err != nil {
		return noAnswer(err, at, check)
	}

	limited := &io.LimitedReader{R: conn, N: maxAnswer}
	resp, err := readResponse(bufio.NewReader(limited), req) //nolint:bodyclose // the caller closes the connection
	if err != nil {
		if limited.N == 0 {
			return fmt.Errorf("headers from %s are longer than %d bytes", at, maxAnswer)
		}
		return noAnswer(err, at, check)
	}
	switch status := resp.StatusCode; {
	case status >= 300 && status <= 399:
		return fmt.Errorf("http status %d from %s: a redirect is not followed, give the check the path that it leads to", status, at)
	case status < 200 || status > 299:
		return fmt.Errorf("http status %d from %s", status, at)
	}

	if _, err := io.Copy(io.Discard, resp.Body); err != nil && limited.N > 0 {
		if isTimeout(err) {
			return fmt.Errorf("answer from %s not complete within %v", at, check.Timeout)
		}
		return fmt.Errorf("answer from %s breaks off: %w", at, cause(err))
	}
	return nil
}

// hostHeader is what a browser would send: without the port that http implies
// and without a zone, which means nothing beyond this node (RFC 6874).
func hostHeader(addr netip.AddrPort) string {
	host := netip.AddrPortFrom(addr.Addr().WithZone(""), addr.Port()).String()
	return strings.TrimSuffix(host, ":80")
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

func noAnswer(err error, at endpoint, check lb.Check) error {
	var op *net.OpError
	switch {
	case isTimeout(err):
		return fmt.Errorf("no answer from %s within %v", at, check.Timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &op):
		return fmt.Errorf("connection closed by %s before it answered", at)
	}
	// The cause would quote the answer, which may be of any length.
	return fmt.Errorf("answer from %s is not http", at)
}
