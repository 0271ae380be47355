package health

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// tlsConfig gives what the check wants of TLS, with the protocol that is
// spoken over it.
func (a *asker) tlsConfig(protocol string) (*tls.Config, error) {
	cfg := &tls.Config{
		ServerName:         a.serverName(),
		NextProtos:         []string{protocol},
		InsecureSkipVerify: !a.check.Verify,
	}
	if ca := a.check.CA; ca.Data != "" {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(ca.Data)) {
			return nil, fmt.Errorf("%s has no certificate", ca)
		}
	}
	if a.check.Certificate.Data != "" {
		certificate, err := tls.X509KeyPair([]byte(a.check.Certificate.Data), []byte(a.check.Key.Data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.check.Certificate, err)
		}
		cfg.Certificates = []tls.Certificate{certificate}
	}
	return cfg, nil
}

// serverName is whom the certificate has to be for. An address is not sent as
// SNI (RFC 6066, section 3).
func (a *asker) serverName() string {
	return cmp.Or(a.check.Host, a.at.Addr().WithZone("").String())
}

// handshake speaks TLS over conn.
func (a *asker) handshake(ctx context.Context, conn net.Conn, cfg *tls.Config) (*tls.Conn, error) {
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, a.noHandshake(err)
	}
	return secure, nil
}

func (a *asker) noHandshake(err error) error {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case isTimeout(err):
		return fmt.Errorf("no tls handshake with %s within %v", a.at, a.check.Timeout)
	case errors.As(err, &unknown):
		return fmt.Errorf("certificate of %s is signed by nobody whom this node trusts: give the check a ca_file, or verify: false", a.at)
	case errors.As(err, &host):
		return fmt.Errorf("certificate of %s is for %s, not for %s: give the check the host that it is for, or verify: false", a.at, holders(host.Certificate), a.serverName())
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate of %s is valid from %s to %s only", a.at, day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter))
	case errors.As(err, &record):
		return fmt.Errorf("answer from %s is not tls", a.at)
	}
	if refused := a.alert(err); refused != nil {
		return refused
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("connection closed by %s during the tls handshake", a.at)
	}
	return fmt.Errorf("tls handshake with %s: %s", a.at, quote(cause(err).Error()))
}

// alert is what the server said against us; nil where it said nothing. With TLS
// 1.3 it comes after the handshake, in place of the answer.
func (a *asker) alert(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return nil
	}
	refused := fmt.Errorf("tls refused by %s: %w", a.at, op.Err)
	if a.check.Certificate == (lb.File{}) && strings.Contains(op.Err.Error(), "certificate") {
		return fmt.Errorf("%w: give the check a cert_file and key_file", refused)
	}
	return refused
}

// holders lists some of those whom a certificate is for.
func holders(c *x509.Certificate) string {
	names := c.DNSNames
	for _, ip := range c.IPAddresses {
		names = append(names[:len(names):len(names)], ip.String())
	}
	switch {
	case len(names) == 0:
		return "nobody by name"
	case len(names) > 3:
		return quote(strings.Join(names[:3], ", ")) + " and others"
	}
	return quote(strings.Join(names, ", "))
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }
