package lb

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Order is what an operator asked for at run time, beside the configuration. All
// members hold all orders. Of those about one subject the last one given counts:
// the one of the greater Version, and of equal ones the one of the greater Member.
type Order struct {
	Subject Subject
	Action  Action
	Weight  int // of Weigh

	By    string    // who gave it
	At    time.Time // when, by the clock of Member
	Until time.Time // when it ends by itself; zero: when it is undone

	Member  string // that took it
	Version uint64 // greater than that of every order about the subject that Member knew
}

// SubjectKind says what an order is about.
type SubjectKind uint8

const (
	// OfNode is a node, named by Subject.Name.
	OfNode SubjectKind = iota + 1
	// OfService is a service, named by Subject.Name.
	OfService
	// OfBackend is the backend Subject.Name of Subject.Service, or without a
	// service of every service that has one of this name.
	OfBackend
)

func (k SubjectKind) String() string {
	switch k {
	case OfNode:
		return "node"
	case OfService:
		return "service"
	case OfBackend:
		return "backend"
	}
	return fmt.Sprintf("subject-%d", uint8(k))
}

// Subject is what an order is about.
type Subject struct {
	Kind    SubjectKind
	Service string // of a backend; empty: of all services
	Name    string
}

// ParseSubject reads a kind and a name as commands have them: a backend is named
// web1, or web/web1 where only that of the service web is meant.
func ParseSubject(kind, name string) (Subject, error) {
	s := Subject{Name: name}
	switch kind {
	case OfNode.String():
		s.Kind = OfNode
	case OfService.String():
		s.Kind = OfService
	case OfBackend.String():
		s.Kind = OfBackend
		if service, backend, ok := strings.Cut(name, "/"); ok {
			s.Service, s.Name = service, backend
			if service == "" {
				return Subject{}, fmt.Errorf("backend %q: no service before the /: write web/web1, or web1 for that of every service", name)
			}
		}
	default:
		return Subject{}, fmt.Errorf("%q is nothing that can be told to do something: use node, backend or service", kind)
	}
	if s.Name == "" {
		return Subject{}, fmt.Errorf("%s %q has no name", kind, name)
	}
	return s, nil
}

func (s Subject) String() string { return s.Kind.String() + " " + s.Called() }

// Called is the name that ParseSubject reads.
func (s Subject) Called() string {
	if s.Service != "" {
		return s.Service + "/" + s.Name
	}
	return s.Name
}

// Compare orders subjects by kind, service and name.
func (s Subject) Compare(o Subject) int {
	return cmp.Or(cmp.Compare(s.Kind, o.Kind), cmp.Compare(s.Service, o.Service), cmp.Compare(s.Name, o.Name))
}

// Action is what is to be done.
type Action uint8

const (
	// Undo takes back the order before it.
	Undo Action = iota
	// Drain keeps new flows away; old ones live on. Of a node or a service: its
	// VIPs are withdrawn, and what still comes is forwarded.
	Drain
	// Fail drops old flows as well: the backend counts as down.
	Fail
	// Weigh gives a backend another weight than the configuration does.
	Weigh
)

func (a Action) String() string {
	switch a {
	case Undo:
		return "undo"
	case Drain:
		return "drain"
	case Fail:
		return "fail"
	case Weigh:
		return "weigh"
	}
	return fmt.Sprintf("action-%d", uint8(a))
}

// Supersedes tells whether o counts in the place of other, which is about the
// same subject.
func (o Order) Supersedes(other Order) bool {
	return cmp.Or(cmp.Compare(o.Version, other.Version), cmp.Compare(o.Member, other.Member)) > 0
}

// InForce tells whether o asks for something at a time.
func (o Order) InForce(now time.Time) bool {
	return o.Action != Undo && (o.Until.IsZero() || now.Before(o.Until))
}

// String says who ordered what, and until when.
func (o Order) String() string {
	text := fmt.Sprintf("%s of %s", o.Action, o.Subject)
	if o.Action == Weigh {
		text = fmt.Sprintf("weight %d of %s", o.Weight, o.Subject)
	}
	text += fmt.Sprintf(" by %s on %s at %s", o.By, o.Member, o.At.UTC().Format(time.RFC3339))
	if !o.Until.IsZero() {
		text += " until " + o.Until.UTC().Format(time.RFC3339)
	}
	return text
}
