package health

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/halfproxy/halfproxy/lb"
)

// dnsAsker asks a name server for records.
type dnsAsker struct {
	*asker
	recordType uint16
	rcode      int
}

func (a *asker) dns() (probe, error) {
	d := &dnsAsker{asker: a}
	var known bool
	if d.recordType, known = dns.StringToType[a.check.RecordType]; !known {
		return nil, fmt.Errorf("no DNS record has the type %s", a.check.RecordType)
	}
	if d.rcode, known = dns.StringToRcode[a.check.Rcode]; !known {
		return nil, fmt.Errorf("no DNS answer has the rcode %s", a.check.Rcode)
	}
	return d.ask, nil
}

func (d *dnsAsker) ask(ctx context.Context) error {
	for _, over := range d.check.Over {
		if err := d.askOver(ctx, over.String()); err != nil {
			return err
		}
	}
	return nil
}

func (d *dnsAsker) askOver(ctx context.Context, network string) error {
	conn, err := d.connect(ctx, network)
	if err != nil {
		return err
	}
	defer conn.Close()

	question := new(dns.Msg)
	question.SetQuestion(d.check.Query, d.recordType) // recursion desired, for resolvers
	question.SetEdns0(1232, false)                    // what fits every path (DNS flag day 2020)
	packed, err := question.Pack()
	if err != nil {
		return fmt.Errorf("ask %s: %w", d.at, err)
	}
	start := time.Now()
	answer := new(dns.Msg)
	if network == "tcp" {
		err = d.overTCP(conn, packed, answer)
	} else {
		err = d.overUDP(conn, packed, answer)
	}
	switch {
	case errors.Is(err, errNotDNS):
		return fmt.Errorf("answer from %s over %s is not dns", d.at, network)
	case err != nil && isTimeout(err) && network == "udp":
		return fmt.Errorf("no answer from %s over udp within %v%s", d.at, d.check.Timeout, d.at.silence())
	case err != nil && isTimeout(err):
		return fmt.Errorf("no answer from %s over %s within %v", d.at, network, d.check.Timeout)
	case err != nil && network == "tcp":
		return fmt.Errorf("connection closed by %s before it answered", d.at)
	case err != nil:
		return d.noPacket(err, start)
	}
	return d.judge(answer, network)
}

// errNotDNS is an answer that no name server would give.
var errNotDNS = errors.New("not DNS")

// overUDP passes over packets that answer something else: a late answer to an
// earlier probe from the same port.
func (d *dnsAsker) overUDP(conn net.Conn, question []byte, answer *dns.Msg) error {
	if _, err := conn.Write(question); err != nil {
		return err
	}
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if answer.Unpack(buf[:n]) != nil {
			return errNotDNS
		}
		if d.answers(question, answer) {
			return nil
		}
	}
}

// overTCP puts the message's length before it (RFC 1035, section 4.2.2).
func (d *dnsAsker) overTCP(conn net.Conn, question []byte, answer *dns.Msg) error {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)); err != nil {
		return err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	if answer.Unpack(buf) != nil || !d.answers(question, answer) {
		return errNotDNS
	}
	return nil
}

// answers tells whether answer is one to question. Servers that cannot read a
// question leave it out.
func (d *dnsAsker) answers(question []byte, answer *dns.Msg) bool {
	if !answer.Response || answer.Id != binary.BigEndian.Uint16(question) {
		return false
	}
	if len(answer.Question) == 0 {
		return answer.Rcode != dns.RcodeSuccess
	}
	q := answer.Question[0]
	return strings.EqualFold(q.Name, d.check.Query) && q.Qtype == d.recordType
}

func (d *dnsAsker) judge(answer *dns.Msg, network string) error {
	if answer.Rcode != d.rcode {
		return fmt.Errorf("dns rcode %s from %s over %s, the check wants %s", rcodeName(answer.Rcode), d.at, network, d.check.Rcode)
	}
	if len(d.check.Answer) == 0 {
		return nil
	}
	var others []string
	for _, record := range answer.Answer {
		if record.Header().Rrtype != d.recordType {
			continue
		}
		got := recordData(record)
		if sameData(got, string(d.check.Answer)) {
			return nil
		}
		others = append(others, got)
	}
	wanted := fmt.Sprintf("answer from %s over %s has no %s record %q", d.at, network, d.check.RecordType, quote(string(d.check.Answer)))
	switch {
	case answer.Truncated && network == lb.UDP.String():
		return fmt.Errorf("%s in what fits a packet: let the check ask over tcp", wanted)
	case len(others) > 0:
		return fmt.Errorf("%s but %q", wanted, quote(strings.Join(others, ", ")))
	}
	return errors.New(wanted)
}

// recordData is what dig +short shows of a record; text without its quotes.
func recordData(r dns.RR) string {
	if text, ok := r.(*dns.TXT); ok {
		return strings.Join(text.Txt, "")
	}
	return strings.TrimPrefix(r.String(), r.Header().String())
}

// sameData ignores case and the dot at a name's end.
func sameData(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

func rcodeName(rcode int) string {
	if name, known := dns.RcodeToString[rcode]; known {
		return name
	}
	return fmt.Sprint(rcode)
}
