package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/halfproxy/halfproxy/admin"
)

// request is one with everything in it.
func request() admin.CaptureRequest {
	return admin.CaptureRequest{
		Verdicts: []string{"forwarded", "no_backend"}, Service: "web", Backend: "web1",
		Host: netip.MustParsePrefix("198.51.100.0/24"), Port: 443, Incoming: true, Outgoing: true,
		Sample: 10, Snaplen: 128, Rate: 1000, Count: 5, Duration: time.Minute,
	}
}

// frames hands n frames to the sink, and then counts.
func frames(to admin.CaptureSink, n int) error {
	if err := to.Begin(); err != nil {
		return err
	}
	for range n {
		if err := to.Packet(admin.CapturedFrame{Time: time.Now(), Interface: "eth0", Verdict: "forwarded", Action: 3, Length: 60, Data: make([]byte, 60)}); err != nil {
			return err
		}
	}
	return to.Count(map[string]admin.CaptureCount{"eth0": {Seen: 100, Matched: 30, Lost: 20}, "eth1": {Lost: 3}})
}

// count reads a capture and gives the number of its frames.
func count(t *testing.T, capture []byte) (n int) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(capture), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		_, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatalf("frame %d: %v", n, err)
		}
		n++
	}
}

func TestACaptureComesToTheClientAsItWasAskedFor(t *testing.T) {
	cfg := config(t)
	var asked admin.CaptureRequest
	cfg.Capture = func(_ context.Context, r admin.CaptureRequest, to admin.CaptureSink) error {
		asked = r
		return frames(to, 3)
	}
	n := start(t, cfg)
	stream, err := admin.NewClient(n.path).Capture(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	captured, lost, err := stream.Copy(&out)
	if err != nil || captured != 3 || lost != 23 {
		t.Errorf("got %d frames, %d lost, %v, want 3, 23 and no error", captured, lost, err)
	}
	if !reflect.DeepEqual(asked, request()) {
		t.Errorf("asked for %+v, want %+v", asked, request())
	}
	if n := count(t, out.Bytes()); n != 3 {
		t.Errorf("there are %d frames, want 3", n)
	}
	r, err := pcapgo.NewNgReader(&out, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	node := troubled().Node
	want := "node " + node.Name + ": halfproxy capture --verdict forwarded,no_backend --service web --backend web1 --host 198.51.100.0/24 --port 443" +
		" --direction both --sample 10 --snaplen 128 --rate 1000 --count 5 --duration 1m0s"
	if s := r.SectionInfo(); s.Comment != want || s.Application != "halfproxy "+node.Version {
		t.Errorf("got %+v, want comment %q", s, want)
	}
}

// What the client has by then is whole, and the node learns of it at once.
func TestACaptureEndsWhenItsClientHasEnough(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(cancel context.CancelFunc, stream *admin.CaptureStream)
		want string
	}{
		{"asked to end", func(cancel context.CancelFunc, _ *admin.CaptureStream) { cancel() }, ""},
		{"gone", func(_ context.CancelFunc, stream *admin.CaptureStream) { stream.Close() }, "closed"},
	} {
		cfg := config(t)
		ended := make(chan struct{})
		cfg.Capture = func(ctx context.Context, _ admin.CaptureRequest, to admin.CaptureSink) error {
			defer close(ended)
			err := frames(to, 2)
			<-ctx.Done()
			return err
		}
		n := start(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := admin.NewClient(n.path).Capture(ctx, request())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(50*time.Millisecond, func() { tt.end(cancel, stream) })
		var out bytes.Buffer
		captured, lost, err := stream.Copy(&out)
		if tt.want == "" && (err != nil || captured != 2 || lost != 23) {
			t.Errorf("%s: got %d frames, %d lost, %v, want 2, 23 and no error", tt.name, captured, lost, err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want it to hold %q", tt.name, err, tt.want)
		}
		if n := count(t, out.Bytes()); n != 2 {
			t.Errorf("%s: there are %d frames, want 2", tt.name, n)
		}
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the node captures on", tt.name)
		}
	}
}

func TestACaptureEndsWhenItsTimeIsOverOrTheServerStops(t *testing.T) {
	for _, stops := range []bool{false, true} {
		cfg := config(t)
		cfg.Capture = func(ctx context.Context, _ admin.CaptureRequest, to admin.CaptureSink) error {
			err := frames(to, 2)
			<-ctx.Done()
			return err
		}
		n := start(t, cfg)
		r := request()
		r.Duration = time.Hour
		if !stops {
			r.Duration = 50 * time.Millisecond
		}
		stream, err := admin.NewClient(n.path).Capture(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if stops {
			go n.stop()
		}
		var out bytes.Buffer
		if captured, _, err := stream.Copy(&out); err != nil || captured != 2 {
			t.Errorf("server stops: %t: got %d frames, %v, want 2", stops, captured, err)
		}
	}
}

func TestACaptureMayTakeLongerThanARequest(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a request may, and longer")
	}
	t.Parallel()
	cfg := config(t)
	cfg.Capture = func(ctx context.Context, _ admin.CaptureRequest, to admin.CaptureSink) error {
		if err := to.Begin(); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	n := start(t, cfg)
	r := request()
	r.Duration = 11 * time.Second // 10 s are the server's ReadTimeout
	begin := time.Now()
	stream, err := admin.NewClient(n.path).Capture(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := stream.Copy(io.Discard); err != nil || time.Since(begin) < r.Duration {
		t.Errorf("got %v after %s, want it to last %s", err, time.Since(begin), r.Duration)
	}
}

func TestACaptureThatIsRefusedOrFailsSaysWhy(t *testing.T) {
	cfg := config(t)
	begun := false
	cfg.Capture = func(_ context.Context, _ admin.CaptureRequest, to admin.CaptureSink) error {
		if begun {
			if err := frames(to, 1); err != nil {
				return err
			}
		}
		return errors.New("capture: another one runs")
	}
	n := start(t, cfg)
	if _, err := admin.NewClient(n.path).Capture(t.Context(), request()); err == nil || err.Error() != "capture: another one runs" {
		t.Errorf("got %v, want why", err)
	}
	begun = true
	stream, err := admin.NewClient(n.path).Capture(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	if captured, lost, err := stream.Copy(io.Discard); err == nil || err.Error() != "capture: another one runs" || captured != 1 || lost != 23 {
		t.Errorf("got %d frames, %d lost, %v, want 1, 23 and why", captured, lost, err)
	}
}

func TestACaptureIsForTheSocketAlone(t *testing.T) {
	cfg := config(t)
	cfg.Capture = func(context.Context, admin.CaptureRequest, admin.CaptureSink) error {
		t.Error("captured")
		return nil
	}
	n := start(t, cfg)
	if resp, _ := ask(t, http.DefaultClient, "POST", n.url+"/api/v1/capture"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST over TCP: got %s, want 405", resp.Status)
	}
	if resp, _ := ask(t, http.DefaultClient, "GET", n.url+"/api/v1/capture"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET over TCP: got %s, want 404", resp.Status)
	}
	for _, body := range []string{"", "{", `{"hosts": "everything"}`} {
		resp, err := n.socket.Post("http://halfproxy/api/v1/capture", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: got %s, want 400", body, resp.Status)
		}
	}
}

func TestWhatIsNotAskedForIsNotInTheRequest(t *testing.T) {
	got, err := json.Marshal(admin.CaptureRequest{Incoming: true, Snaplen: 16384, Rate: 10000})
	if want := `{"incoming":true,"outgoing":false,"snaplen":16384,"rate":10000}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
