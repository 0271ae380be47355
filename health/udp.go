package health

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// maxDatagram is what is read of an answer: no more fits most networks' packets.
const maxDatagram = 9000

// askUDP sends one packet. Where the check takes silence for an answer, only an
// ICMP error fails it.
func (a *asker) askUDP(ctx context.Context) error {
	conn, err := a.connect(ctx, "udp")
	if err != nil {
		return err
	}
	defer conn.Close()
	start := time.Now()
	if _, err := conn.Write(a.check.Payload); err != nil {
		return a.noPacket(err, start)
	}
	buf := make([]byte, maxDatagram)
	n, err := conn.Read(buf)
	switch {
	case err != nil && isTimeout(err) && a.check.Silent:
		return nil
	case err != nil:
		return a.noPacket(err, start)
	case !bytes.Contains(buf[:n], a.check.Answer):
		return fmt.Errorf("answer of %d bytes from %s does not contain %q", n, a.at, quote(string(a.check.Answer)))
	}
	return nil
}

func (a *asker) noPacket(err error, start time.Time) error {
	if isTimeout(err) {
		return fmt.Errorf("no answer from %s within %v%s", a.at, a.check.Timeout, a.at.silence())
	}
	if known := a.refusal(err, time.Since(start)); known != nil {
		return known
	}
	return fmt.Errorf("send to %s: %w", a.at, cause(err))
}
