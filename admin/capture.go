package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/internal/httpserver"
)

const capturePath = "/api/v1/capture"

// CaptureRequest says which frames a capture is to have.
type CaptureRequest struct {
	Verdicts []string     `json:"verdicts,omitempty"` // as halfproxy_packets_total has them; none: any
	Service  string       `json:"service,omitempty"`
	Backend  string       `json:"backend,omitempty"`
	Host     netip.Prefix `json:"host,omitzero"` // of source or destination
	Port     uint16       `json:"port,omitempty"`

	Incoming bool `json:"incoming"` // frames as they come in
	Outgoing bool `json:"outgoing"` // frames as they leave

	Sample   uint32        `json:"sample,omitempty"`   // one in so many, by chance
	Snaplen  uint32        `json:"snaplen"`            // bytes kept of a frame at most
	Rate     uint32        `json:"rate"`               // frames a second and interface at most
	Count    uint64        `json:"count,omitempty"`    // of frames after which it ends
	Duration time.Duration `json:"duration,omitempty"` // after which it ends, in nanoseconds
}

// String is the request as the command line has it.
func (r CaptureRequest) String() string {
	words := []string{"halfproxy capture"}
	add := func(there bool, format string, value any) {
		if there {
			words = append(words, fmt.Sprintf(format, value))
		}
	}
	add(len(r.Verdicts) > 0, "--verdict %s", strings.Join(r.Verdicts, ","))
	add(r.Service != "", "--service %s", r.Service)
	add(r.Backend != "", "--backend %s", r.Backend)
	add(r.Host.IsValid(), "--host %s", r.Host)
	add(r.Port != 0, "--port %d", r.Port)
	add(r.Outgoing, "--direction %s", map[bool]string{true: "both", false: "out"}[r.Incoming])
	add(r.Sample > 1, "--sample %d", r.Sample)
	add(true, "--snaplen %d", r.Snaplen)
	add(true, "--rate %d", r.Rate)
	add(r.Count > 0, "--count %d", r.Count)
	add(r.Duration > 0, "--duration %s", r.Duration)
	return strings.Join(words, " ")
}

// CapturedFrame is a frame and what became of it.
type CapturedFrame struct {
	Time      time.Time
	Interface string
	Outgoing  bool // as it left; else as it came in
	Verdict   string
	Action    uint32 // XDP_PASS and the like
	Service   string
	Backend   string
	Length    int
	Data      []byte // what was kept of it
}

// CaptureCount is what happened on an interface since a capture began.
type CaptureCount struct {
	Seen    uint64 // packets
	Matched uint64 // frames that were asked for
	Lost    uint64 // of those
}

// CaptureSink takes what a capture gives. Its first error ends the capture.
type CaptureSink interface {
	Begin() error
	Packet(CapturedFrame) error
	Count(map[string]CaptureCount) error // ten times a second, and in the end
}

// What is told after the last block: how many frames were lost, and why the
// capture ended, unless it was asked to.
const (
	lostTrailer  = "Halfproxy-Lost"
	errorTrailer = "Halfproxy-Error"
)

// capture answers with frames until the client has enough, which it tells by
// closing its half of the connection, or is gone.
func (s *Server) capture(w http.ResponseWriter, r *http.Request, cfg Config) {
	var wanted CaptureRequest
	if !asked(w, r, "request", &wanted) {
		return
	}
	ctx := r.Context()
	if wanted.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wanted.Duration)
		defer cancel()
	}
	node := cfg.Status().Node
	sink := &captureWriter{
		w: w, controller: http.NewResponseController(w),
		application: "halfproxy " + node.Version, comment: fmt.Sprintf("node %s: %s", node.Name, wanted), snaplen: wanted.Snaplen,
	}
	err := cfg.Capture(ctx, wanted, sink)
	if sink.file == nil {
		if err == nil {
			err = errors.New("the capture has ended before it began")
		}
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	if written := sink.tell(); written != nil || errors.Is(err, errNotWritten) {
		s.log.Debug("capture not delivered", "err", errors.Join(err, written))
		return
	}
	if err != nil {
		w.Header().Set(errorTrailer, err.Error())
	}
	w.Header().Set(lostTrailer, strconv.FormatUint(sink.lost(), 10))
}

// captureWriter writes a capture as the answer to a request.
type captureWriter struct {
	w           http.ResponseWriter
	controller  *http.ResponseController
	application string
	comment     string
	snaplen     uint32

	buffer  *bufio.Writer
	file    *pcapng // nil: it has not begun
	counts  map[string]CaptureCount
	counted time.Time // when counts were written
}

// errNotWritten is that the client is gone.
var errNotWritten = errors.New("the client does not read")

func notWritten(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errNotWritten, err)
	}
	return nil
}

func (c *captureWriter) Begin() (err error) {
	// A capture takes longer than a request may.
	if err := c.controller.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/x-pcapng")
	c.w.Header().Set("Cache-Control", "no-store")
	c.w.Header().Set("Trailer", lostTrailer+", "+errorTrailer)
	c.buffer = bufio.NewWriterSize(c.w, 64<<10)
	if c.file, err = newPcapng(c.buffer, c.application, c.comment, c.snaplen); err != nil {
		return notWritten(err)
	}
	return c.flush()
}

func (c *captureWriter) Packet(f CapturedFrame) error { return notWritten(c.file.packet(f)) }

func (c *captureWriter) Count(counts map[string]CaptureCount) error {
	c.counts = counts
	if now := time.Now(); now.Sub(c.counted) > time.Second {
		c.counted = now
		return c.tell()
	}
	return c.flush()
}

// tell writes how things stand, and has it delivered.
func (c *captureWriter) tell() error {
	if err := c.file.statistics(c.counts); err != nil {
		return notWritten(err)
	}
	return c.flush()
}

// flush has what is written delivered. A client that takes nothing for a while
// is as good as gone.
func (c *captureWriter) flush() error {
	if err := c.controller.SetWriteDeadline(time.Now().Add(httpserver.Patience)); err != nil {
		return err
	}
	return notWritten(errors.Join(c.buffer.Flush(), c.controller.Flush()))
}

func (c *captureWriter) lost() (sum uint64) {
	for _, count := range c.counts {
		sum += count.Lost
	}
	return sum
}

// CaptureStream is a capture that runs.
type CaptureStream struct {
	client *Client
	answer *http.Response
	end    func() bool // keeps the end of a context from ending the capture
}

// Capture begins a capture, which ends with ctx, if not before as the request
// has it.
func (c *Client) Capture(ctx context.Context, r CaptureRequest) (*CaptureStream, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	// The end of ctx closes our half of the connection, no more: the node then
	// sends what there is left, and how many frames were lost.
	connected := make(chan *net.UnixConn, 1)
	transport := &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: httpserver.Patience,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := c.dial(ctx)
			if err == nil {
				connected <- conn.(*net.UnixConn)
			}
			return conn, err
		},
	}
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, "http://halfproxy"+capturePath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		_, err := c.read(req, resp)
		return nil, err
	}
	conn := <-connected
	stop := context.AfterFunc(ctx, func() {
		if err := errors.Join(conn.CloseWrite(), conn.SetReadDeadline(time.Now().Add(httpserver.Patience))); err != nil {
			conn.Close() // which ends it, too
		}
	})
	return &CaptureStream{c, resp, stop}, nil
}

// Close ends the capture, for a caller that does not come to Copy.
func (s *CaptureStream) Close() {
	s.end()
	s.answer.Body.Close()
}

// Copy writes the capture to w until it ends, and tells how many frames it has
// and how many were lost. However it ends, w has whole blocks.
func (s *CaptureStream) Copy(w io.Writer) (frames, lost uint64, err error) {
	defer s.Close()
	in, out := bufio.NewReaderSize(s.answer.Body, 64<<10), bufio.NewWriterSize(w, 64<<10)
	var block []byte
	for {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return frames, lost, fmt.Errorf("write the capture: %w", err)
			}
		}
		var kind uint32
		kind, block, err = nextBlock(in, block)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return frames, lost, errors.Join(s.client.explain(err), out.Flush())
		}
		if kind == packetBlock {
			frames++
		}
		if _, err := out.Write(block); err != nil {
			return frames, lost, fmt.Errorf("write the capture: %w", err)
		}
	}
	if lost, err = strconv.ParseUint(s.answer.Trailer.Get(lostTrailer), 10, 64); err != nil {
		return frames, lost, errors.New("halfproxy has ended the capture without a word: see its log")
	}
	if problem := s.answer.Trailer.Get(errorTrailer); problem != "" {
		return frames, lost, errors.New(problem)
	}
	return frames, lost, nil
}
