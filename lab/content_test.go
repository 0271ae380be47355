package lab

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

func TestContentIsTheSameInPiecesOfAnySize(t *testing.T) {
	whole := make([]byte, 1000)
	new(content).Read(whole)
	for size := 1; size < 20; size++ {
		var pieces []byte
		r := new(content)
		for len(pieces) < len(whole) {
			p := make([]byte, min(size, len(whole)-len(pieces)))
			r.Read(p)
			pieces = append(pieces, p...)
		}
		if !bytes.Equal(pieces, whole) {
			t.Errorf("pieces of %d: got other content than in one piece", size)
		}
		w := new(content)
		if n, err := io.CopyBuffer(w, bytes.NewReader(whole), make([]byte, size)); n != 1000 || err != nil {
			t.Errorf("check in pieces of %d: got %d, %v, want 1000 and no error", size, n, err)
		}
	}
}

func TestContentThatWasDamagedIsFound(t *testing.T) {
	good := make([]byte, 4096)
	new(content).Read(good)
	for name, bad := range map[string][]byte{
		"a byte changed": append(append(bytes.Clone(good[:2000]), good[2000]^1), good[2001:]...),
		"a byte lost":    append(bytes.Clone(good[:2000]), good[2001:]...),
		"a part doubled": append(bytes.Clone(good[:2048]), good[1024:]...),
		"parts swapped":  append(bytes.Clone(good[2048:]), good[:2048]...),
	} {
		if _, err := new(content).Write(bad); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestAPacedStreamTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		p := &paced{reader: io.LimitReader(new(content), 10_000), rate: 1000}
		if n, err := io.Copy(io.Discard, p); n != 10_000 || err != nil {
			t.Fatalf("got %d bytes and %v, want 10000 and no error", n, err)
		}
		if took := time.Since(begin); took < 9900*time.Millisecond || took > 10*time.Second {
			t.Errorf("10,000 bytes at 1,000 a second took %v, want just under 10s", took)
		}
	})
}
