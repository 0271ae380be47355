package health

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcAsker asks grpc.health.v1.
type grpcAsker struct {
	*asker
	tls *tls.Config // nil: none
}

func (a *asker) grpc() (probe, error) {
	g := &grpcAsker{asker: a}
	if a.check.TLS {
		var err error
		if g.tls, err = a.tlsConfig("h2"); err != nil {
			return nil, err
		}
	}
	return g.ask, nil
}

func (g *grpcAsker) ask(ctx context.Context) error {
	plain, err := g.connect(ctx, "tcp")
	if err != nil {
		return err
	}
	defer plain.Close()
	server := &server{Conn: plain}
	if g.tls != nil {
		secure, err := g.handshake(ctx, plain, g.tls)
		if err != nil {
			return err
		}
		state := secure.ConnectionState()
		server.Conn, server.tls = secure, &state
	}

	var taken atomic.Bool
	client, err := grpc.NewClient("passthrough:///"+g.at.AddrPort.String(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if taken.Swap(true) {
				return nil, errors.New("a probe has one connection")
			}
			return server, nil
		}),
		grpc.WithTransportCredentials(server), grpc.WithAuthority(cmp.Or(g.check.Host, g.at.AddrPort.String())), grpc.WithUserAgent("halfproxy"),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithDisableHealthCheck(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return fmt.Errorf("ask %s: %w", g.at, err)
	}
	defer client.Close()
	answer, err := grpc_health_v1.NewHealthClient(client).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: g.check.GRPCService})
	if err != nil {
		return g.noAnswer(err, server.failure.Load())
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s on %s is %s", g.asked(), g.at, answer.Status)
	}
	return nil
}

// asked is what the check is about.
func (g *grpcAsker) asked() string {
	if g.check.GRPCService == "" {
		return "grpc server"
	}
	return fmt.Sprintf("grpc service %q", g.check.GRPCService)
}

// noAnswer says why a call failed; failure is what reading from the server came to.
func (g *grpcAsker) noAnswer(err error, failure *error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.DeadlineExceeded, codes.Canceled:
		return fmt.Errorf("no answer from %s within %v", g.at, g.check.Timeout)
	case codes.Unimplemented:
		return fmt.Errorf("%s does not serve grpc.health.v1: add the health service to the server, or use another check", g.at)
	case codes.NotFound:
		return fmt.Errorf("%s on %s is not known to its health service", g.asked(), g.at)
	case codes.Unavailable:
		if failure == nil {
			return fmt.Errorf("answer from %s is not grpc", g.at)
		}
		if refused := g.alert(*failure); refused != nil {
			return refused
		}
		if isTimeout(*failure) {
			return fmt.Errorf("no answer from %s within %v", g.at, g.check.Timeout)
		}
		return fmt.Errorf("connection closed by %s before it answered", g.at)
	}
	return fmt.Errorf("grpc error %s from %s: %s", s.Code(), g.at, quote(s.Message()))
}

// server is a connection to one, and its credentials: the handshake is over. It
// keeps what ended it, of which grpc tells by words alone.
type server struct {
	net.Conn
	tls     *tls.ConnectionState // nil: none
	failure atomic.Pointer[error]
}

func (s *server) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if err != nil {
		s.failure.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (s *server) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if s.tls == nil {
		return conn, nil, nil
	}
	common := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	return conn, credentials.TLSInfo{State: *s.tls, CommonAuthInfo: common}, nil
}

func (*server) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a probe is a client")
}

// Info decides on the scheme that the server is told.
func (s *server) Info() credentials.ProtocolInfo {
	if s.tls == nil {
		return credentials.ProtocolInfo{SecurityProtocol: "insecure"}
	}
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (s *server) Clone() credentials.TransportCredentials { return s }

func (*server) OverrideServerName(string) error { return nil }
