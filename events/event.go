package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Event is a record of the log.
type Event struct {
	// Number grows from event to event. The next process of a node begins at a
	// greater one.
	Number     uint64     `json:"number"`
	Time       time.Time  `json:"time"`
	Level      string     `json:"level"`   // info, warn or error
	Part       string     `json:"part"`    // of the node that says so
	Message    string     `json:"message"` // always the same of the same kind of event
	Attributes Attributes `json:"attributes"`
}

// String is the event on one line, without its time.
func (e Event) String() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, a := range e.Attributes {
		fmt.Fprintf(&b, " %s=%s", a.Key, quoted(a.Value))
	}
	return b.String()
}

func quoted(value string) string {
	if value == "" || strings.ContainsAny(value, " \t\n\"=") {
		return fmt.Sprintf("%q", value)
	}
	return value
}

// Attribute says what an event is about.
type Attribute struct{ Key, Value string }

// Attributes are those of one event, in the order in which they were logged. In JSON they
// are an object, whose order is kept.
type Attributes []Attribute

// MarshalJSON implements json.Marshaler.
func (as Attributes) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, a := range as {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, text := range []string{a.Key, a.Value} {
			quoted, err := json.Marshal(text)
			if err != nil {
				return nil, err
			}
			if j > 0 {
				b.WriteByte(':')
			}
			b.Write(quoted)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (as *Attributes) UnmarshalJSON(text []byte) error {
	*as = nil
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value string
		if err := d.Decode(&value); err != nil {
			return fmt.Errorf("attribute %v: %w", key, err)
		}
		*as = append(*as, Attribute{fmt.Sprint(key), value})
	}
	return nil
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	}
	return "info"
}
