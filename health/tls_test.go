package health

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/halfproxy/halfproxy/lb"
)

func TestHTTPSProbe(t *testing.T) {
	ca, node := newAuthority(t), newAuthority(t)
	good := ca.issue(t, time.Hour, "www.example.org")
	old := ca.issue(t, -time.Hour, "www.example.org")
	trusting := func(c lb.Check) lb.Check {
		c.Type, c.Verify, c.CA = lb.CheckHTTPS, true, ca.file()
		return c
	}
	for _, tt := range []struct {
		name   string
		server tls.Certificate
		asks   bool // the server, for a certificate
		check  lb.Check
		want   string // %s is the address; empty for a success
	}{
		{"a certificate for the host", good, false, trusting(lb.Check{Host: "www.example.org"}), ""},
		{"a certificate for the address", ca.issue(t, time.Hour, "127.0.0.1", "::1"), false, trusting(lb.Check{}), ""},
		{"HTTP/2", good, false, trusting(lb.Check{Host: "www.example.org", HTTP2: true, Body: "HTTP/2.0 www.example.org sni=www.example.org"}), ""},
		{"HTTP/1.1", good, false, trusting(lb.Check{Host: "www.example.org", Body: "HTTP/1.1 www.example.org sni=www.example.org"}), ""},
		{"another host", good, false, trusting(lb.Check{Host: "shop.example.org"}),
			"certificate of %s is for www.example.org, not for shop.example.org: give the check the host that it is for, or verify: false"},
		{"an authority that is not trusted", good, false, lb.Check{Type: lb.CheckHTTPS, Verify: true, CA: node.file(), Host: "www.example.org"},
			"certificate of %s is signed by nobody whom this node trusts: give the check a ca_file, or verify: false"},
		{"an old certificate", old, false, trusting(lb.Check{Host: "www.example.org"}), "certificate of %s is valid from * only"},
		{"an old certificate that nobody looks at", old, false, lb.Check{Type: lb.CheckHTTPS, Host: "shop.example.org"}, ""},
		{"no certificate of ours", good, true, trusting(lb.Check{Host: "www.example.org"}),
			"tls refused by %s: tls: certificate required: give the check a cert_file and key_file"},
		{"a certificate of ours", good, true, node.client(t, trusting(lb.Check{Host: "www.example.org", Body: "client=node"})), ""},
		{"a certificate of ours that the server does not trust", good, true, ca.client(t, trusting(lb.Check{Host: "www.example.org"})),
			"tls refused by %s: tls: unknown certificate authority"},
	} {
		for _, ip := range loopbacks {
			t.Run(tt.name+" at "+ip, func(t *testing.T) {
				cfg := &tls.Config{Certificates: []tls.Certificate{tt.server}}
				if tt.asks {
					cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, node.pool()
				}
				addr := serveWeb(t, ip, cfg, func(w http.ResponseWriter, r *http.Request) {
					io.WriteString(w, r.Proto+" "+r.Host+" sni="+r.TLS.ServerName)
					for _, c := range r.TLS.PeerCertificates {
						io.WriteString(w, " client="+c.Subject.CommonName)
					}
				})
				expectAt(t, ask(t, addr, get(tt.check)), addr, tt.want)
			})
		}
	}
	t.Run("a server without TLS", func(t *testing.T) {
		addr := serveWeb(t, "127.0.0.1", nil, func(http.ResponseWriter, *http.Request) {})
		expectAt(t, ask(t, addr, get(lb.Check{Type: lb.CheckHTTPS})), addr, "answer from %s is not tls")
	})
	t.Run("a server that closes", func(t *testing.T) {
		addr := serve(t, func(conn net.Conn) { conn.Read(make([]byte, 1<<10)) })
		expectAt(t, ask(t, addr, get(lb.Check{Type: lb.CheckHTTPS})), addr, "connection closed by %s during the tls handshake")
	})
	t.Run("a server that says nothing", func(t *testing.T) {
		addr := serve(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
		expectAt(t, ask(t, addr, get(lb.Check{Type: lb.CheckHTTPS})), addr, "no tls handshake with %s within 300ms")
	})
	t.Run("HTTP/2 asked of one that has it not", func(t *testing.T) {
		l := listen(t, "127.0.0.1", &tls.Config{Certificates: []tls.Certificate{good}, NextProtos: nil})
		server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
		addr := addrOf(l)
		expectAt(t, ask(t, addr, get(lb.Check{Type: lb.CheckHTTPS, HTTP2: true})), addr, "%s does not speak http/2: it does not choose it in the tls handshake")
	})
}

func TestHTTPProbeAsksWhatItIsTold(t *testing.T) {
	page := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/teapot" {
			w.WriteHeader(http.StatusTeapot)
		}
		io.WriteString(w, r.Proto+" "+r.Method+" "+r.Host+" "+r.Header.Get("X-Probe")+" "+r.UserAgent())
	}
	for _, tt := range []struct {
		name  string
		check lb.Check
		want  string
	}{
		{"method, host and headers", lb.Check{Method: "POST", Host: "www.example.org", Body: "HTTP/1.1 POST www.example.org one mine",
			Headers: []lb.Header{{Name: "user-agent", Value: "mine"}, {Name: "x-probe", Value: "one"}}}, ""},
		{"HTTP/2 by prior knowledge", lb.Check{HTTP2: true, Body: "HTTP/2.0 GET"}, ""},
		{"a pattern", lb.Check{BodyPattern: `^HTTP/1\.1 GET .* halfproxy$`}, ""},
		{"a body that is another", lb.Check{Body: "ready"}, `body from %s does not contain "ready"`},
		{"a pattern that does not match", lb.Check{BodyPattern: "^ready"}, `body from %s does not match "^ready"`},
		{"a status that is wanted", lb.Check{Path: "/teapot", Status: []lb.StatusRange{{First: 200, Last: 204}, {First: 418, Last: 418}}}, ""},
		{"a status that is not", lb.Check{Status: []lb.StatusRange{{First: 201, Last: 204}, {First: 418, Last: 418}}}, "http status 200 from %s, the check wants 201-204,418"},
		{"HEAD", lb.Check{Method: "HEAD"}, ""},
	} {
		for _, ip := range loopbacks {
			t.Run(tt.name+" at "+ip, func(t *testing.T) {
				addr := serveWeb(t, ip, nil, page)
				expectAt(t, ask(t, addr, get(tt.check)), addr, tt.want)
			})
		}
	}
	t.Run("HTTP/2 asked of another protocol", func(t *testing.T) {
		addr := serve(t, func(conn net.Conn) {
			io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
			io.Copy(io.Discard, conn)
		})
		expectAt(t, ask(t, addr, get(lb.Check{HTTP2: true})), addr, "answer from %s is not http/2")
	})
}

func TestGRPCProbe(t *testing.T) {
	ca := newAuthority(t)
	certificate := ca.issue(t, time.Hour, "127.0.0.1", "::1")
	for _, tt := range []struct {
		name  string
		tls   bool // of the server
		check lb.Check
		want  string
	}{
		{"the server as a whole", false, lb.Check{}, ""},
		{"a service", false, lb.Check{GRPCService: "shop.Cart"}, ""},
		{"over TLS", true, lb.Check{GRPCService: "shop.Cart", TLS: true, Verify: true, CA: ca.file()}, ""},
		{"a service that is not well", false, lb.Check{GRPCService: "shop.Till"}, `grpc service "shop.Till" on %s is NOT_SERVING`},
		{"a service that there is not", false, lb.Check{GRPCService: "shop.Door"}, `grpc service "shop.Door" on %s is not known to its health service`},
		{"TLS asked of one without", false, lb.Check{TLS: true}, "answer from %s is not tls"},
		{"TLS not asked of one with it", true, lb.Check{}, "connection closed by %s before it answered"},
	} {
		for _, ip := range loopbacks {
			t.Run(tt.name+" at "+ip, func(t *testing.T) {
				var options []grpc.ServerOption
				if tt.tls {
					options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
				}
				health := grpchealth.NewServer()
				health.SetServingStatus("shop.Cart", grpc_health_v1.HealthCheckResponse_SERVING)
				health.SetServingStatus("shop.Till", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
				addr := serveGRPC(t, ip, health, options...)
				tt.check.Type = lb.CheckGRPC
				expectAt(t, ask(t, addr, tt.check), addr, tt.want)
			})
		}
	}
	t.Run("a server without the health service", func(t *testing.T) {
		addr := serveGRPC(t, "127.0.0.1", nil)
		expectAt(t, ask(t, addr, lb.Check{Type: lb.CheckGRPC}), addr,
			"%s does not serve grpc.health.v1: add the health service to the server, or use another check")
	})
	t.Run("a web server", func(t *testing.T) {
		addr := serve(t, func(conn net.Conn) {
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, conn)
		})
		expectAt(t, ask(t, addr, lb.Check{Type: lb.CheckGRPC}), addr, "answer from %s is not grpc")
	})
	t.Run("a server that says nothing", func(t *testing.T) {
		addr := serve(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
		expectAt(t, ask(t, addr, lb.Check{Type: lb.CheckGRPC}), addr, "no answer from %s within 300ms")
	})
	t.Run("a closed port", func(t *testing.T) {
		addr := closedPort(t)
		expectAt(t, ask(t, addr, lb.Check{Type: lb.CheckGRPC}), addr, "connection refused by %s after *")
	})
}

// loopbacks has an address of each family.
var loopbacks = []string{"127.0.0.1", "::1"}

// expectAt is expect with addr in the place of the text's %s.
func expectAt(t *testing.T, err error, addr netip.AddrPort, want string) {
	t.Helper()
	if want == "" {
		expect(t, err, "")
		return
	}
	expect(t, err, want, addr)
}

// listen takes connections at a free port, over TLS where cfg is not nil.
func listen(t *testing.T, ip string, cfg *tls.Config) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg != nil {
		l = tls.NewListener(l, cfg)
	}
	return l
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// serveWeb answers with handle, over HTTP/1.1 and HTTP/2, until the test ends.
func serveWeb(t *testing.T, ip string, cfg *tls.Config, handle http.HandlerFunc) netip.AddrPort {
	t.Helper()
	server := httptest.NewUnstartedServer(handle)
	server.Listener.Close()
	server.Listener = listen(t, ip, nil)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetHTTP2(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	if cfg == nil {
		server.Start()
	} else {
		server.TLS, server.EnableHTTP2 = cfg, true
		server.StartTLS()
	}
	t.Cleanup(server.Close)
	return addrOf(server.Listener)
}

// serveGRPC serves health, or nothing, until the test ends.
func serveGRPC(t *testing.T, ip string, health *grpchealth.Server, options ...grpc.ServerOption) netip.AddrPort {
	t.Helper()
	server := grpc.NewServer(options...)
	if health != nil {
		grpc_health_v1.RegisterHealthServer(server, health)
	}
	l := listen(t, ip, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return addrOf(l)
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue gives a certificate for names and addresses that ends so long from now.
func (a *authority) issue(t *testing.T, left time.Duration, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(left),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// client gives check a certificate of this authority.
func (a *authority) client(t *testing.T, check lb.Check) lb.Check {
	t.Helper()
	certificate := a.issue(t, time.Hour, "node")
	der, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	check.Certificate = pemFile("CERTIFICATE", certificate.Certificate[0])
	check.Key = pemFile("PRIVATE KEY", der)
	return check
}

func (a *authority) file() lb.File { return pemFile("CERTIFICATE", a.certificate.Raw) }

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func pemFile(kind string, der []byte) lb.File {
	return lb.File{Path: "test.pem", Data: lb.Secret(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
