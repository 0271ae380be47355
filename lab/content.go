package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"
)

// content is what downloads and uploads carry: every eight bytes are a number
// made of their place, so that whoever gets them sees at once when one is
// missing, doubled or changed. It reads without end, and checks what is
// written to it.
type content struct{ offset int64 }

func (c *content) Read(p []byte) (int, error) {
	c.fill(p)
	return len(p), nil
}

func (c *content) fill(p []byte) {
	for i := 0; i < len(p); {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], uint64(c.offset/8)*0x9e3779b97f4a7c15) // 2^64/φ: no two alike
		n := copy(p[i:], word[c.offset%8:])
		i += n
		c.offset += int64(n)
	}
}

func (c *content) Write(p []byte) (int, error) {
	begin := c.offset
	want := make([]byte, len(p))
	c.fill(want)
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("the %d bytes from byte %d on are not those that were sent", len(p), begin)
	}
	return len(p), nil
}

// pacePeriod is the time between two portions of a paced stream.
const pacePeriod = 50 * time.Millisecond

// paced gives what reader has at no more than rate bytes a second, on time
// even when one portion was late.
type paced struct {
	reader io.Reader
	rate   int64 // 0: as fast as it goes
	begun  time.Time
	given  int64
}

func (p *paced) Read(b []byte) (int, error) {
	if p.begun.IsZero() {
		p.begun = time.Now()
	}
	if p.rate > 0 {
		due := time.Duration(float64(p.given) / float64(p.rate) * float64(time.Second))
		time.Sleep(time.Until(p.begun.Add(due)))
		portion := math.Ceil(float64(p.rate) * pacePeriod.Seconds())
		b = b[:min(len(b), int(portion))]
	}
	n, err := p.reader.Read(b)
	p.given += int64(n)
	return n, err
}
