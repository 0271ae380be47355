package bfd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// protocol is the version of what Server and Client say to each other, a JSON value
// a line. A daemon of another version ends the process and starts its own.
const protocol = 1

// request is what a client says.
type request struct {
	Protocol int
	Peers    []Peer // the whole set
	Bye      bool   // end: tell the others that it is planned
}

// report is what the server answers, whenever something changed and once a second.
type report struct {
	Protocol int
	Statuses []Status
	Refused  string // why the last request was
}

// reportInterval is how often a client hears of sessions that do not change.
const reportInterval = time.Second

// Server runs a Speaker for a daemon in another process.
type Server struct {
	speaker  *Speaker
	log      *slog.Logger
	listener *net.UnixListener
	linger   time.Duration
}

// NewServer listens on the socket, whose file only its owner may use. A file that a
// dead process left is replaced, one in use is an error. Sessions go on for linger
// after the daemon is gone without a word.
func NewServer(socket string, linger time.Duration, log *slog.Logger) (*Server, error) {
	if conn, err := net.Dial("unix", socket); err == nil {
		conn.Close()
		return nil, fmt.Errorf("bfd socket %s: a process listens there already", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bfd socket: %w", err)
	}
	mask := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	syscall.Umask(mask)
	if err != nil {
		return nil, fmt.Errorf("bfd socket: %w", err)
	}
	return &Server{speaker: NewSpeaker(log), log: log.With("part", "bfd"), listener: l, linger: linger}, nil
}

// Run keeps the sessions that clients ask for, until one says that it is over, there
// was none for the time to linger, or ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer end()
	defer s.listener.Close()

	connected := make(chan net.Conn)
	parts.Go(func() { s.accept(ctx, connected) })
	parts.Go(func() {
		s.attend(ctx, connected)
		end()
	})
	return s.speaker.Run(ctx)
}

func (s *Server) accept(ctx context.Context, connected chan<- net.Conn) {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		select {
		case connected <- conn:
		case <-ctx.Done():
			conn.Close()
			return
		}
	}
}

// attend serves the client that came last, until all is over.
func (s *Server) attend(ctx context.Context, connected <-chan net.Conn) {
	var client net.Conn
	var bye chan bool // of client's end; true: it said that all is over
	lonely := time.NewTimer(s.linger)
	defer lonely.Stop()
	for {
		select {
		case <-ctx.Done():
			if client != nil {
				<-bye
			}
			return
		case conn := <-connected:
			if client != nil { // this one took over from it
				client.Close()
				<-bye
			}
			client, bye = conn, make(chan bool, 1)
			lonely.Stop()
			over := bye
			go func() { over <- s.serve(ctx, conn) }()
		case over := <-bye:
			client.Close()
			client, bye = nil, nil
			if over {
				return
			}
			s.log.Info("the daemon is gone, sessions go on", "for", s.linger)
			lonely.Reset(s.linger)
		case <-lonely.C:
			s.log.Warn("no daemon came back, sessions end", "after", s.linger)
			return
		}
	}
}

// serve speaks to one client until it is gone. It tells whether that said that all is
// over.
func (s *Server) serve(ctx context.Context, conn net.Conn) (bye bool) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	refused := make(chan string, 1)
	var writer sync.WaitGroup
	defer writer.Wait()
	defer end()
	writer.Go(func() { s.write(ctx, conn, refused) })

	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		err := json.Unmarshal(lines.Bytes(), &r)
		if r.Bye {
			return true
		}
		if err == nil && r.Protocol != protocol {
			err = fmt.Errorf("protocol %d, this process speaks %d", r.Protocol, protocol)
		}
		if err == nil {
			err = s.speaker.SetPeers(r.Peers)
		}
		if err != nil {
			select {
			case refused <- err.Error():
			default:
			}
		}
	}
	return false
}

// write tells the client how sessions stand.
func (s *Server) write(ctx context.Context, conn net.Conn, refused <-chan string) {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	out := json.NewEncoder(conn)
	var why string
	for {
		r := report{Protocol: protocol, Statuses: s.speaker.Statuses(), Refused: why}
		// A daemon that stands still must not stop us: it is cut off, and comes back.
		_ = conn.SetWriteDeadline(time.Now().Add(reportInterval))
		if out.Encode(r) != nil {
			conn.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-s.speaker.Changes():
		case why = <-refused:
		}
	}
}
