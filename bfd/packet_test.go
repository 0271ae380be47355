package bfd

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

var sample = Packet{
	State: Up, Poll: true, Independent: true, DetectMult: 3, My: 0x01020304, Your: 0x05060708,
	DesiredMinTx: 100 * time.Millisecond, RequiredMin: 300 * time.Millisecond,
}

func TestAPacketIsWrittenAsTheRFCHasIt(t *testing.T) {
	want := "20" + "e8" + "03" + "18" + // version 1, no diagnostic; up, poll, independent; multiplier; length
		"01020304" + "05060708" + "000186a0" + "000493e0" + "00000000"
	if got := hex.EncodeToString(sample.Append(nil, nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPacketsSurviveTheWire(t *testing.T) {
	key := []byte("secret")
	for _, p := range []Packet{
		sample,
		{State: AdminDown, Diag: AdministrativeDown, DetectMult: 255, My: 1, Final: true, Demand: true, RequiredEcho: time.Second},
		{State: Down, DetectMult: 1, My: 1<<32 - 1, Auth: &Auth{KeyID: 7, Sequence: 1<<32 - 1}},
	} {
		var k []byte
		if p.Auth != nil {
			k = key
		}
		got, err := Parse(p.Append(nil, k), k)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("got %+v, %v, want %+v", got, err, p)
		}
	}
	if string(key) != "secret" {
		t.Errorf("the key became %q", key)
	}
}

func TestWhatIsNoPacketIsRefused(t *testing.T) {
	plain := sample.Append(nil, nil)
	key := []byte("secret")
	signed := sample
	signed.Auth = &Auth{KeyID: 1, Sequence: 9}
	sealed := signed.Append(nil, key)
	with := func(b []byte, at int, value byte) []byte {
		b = bytes.Clone(b)
		b[at] = value
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		key  []byte
		want error
	}{
		{"too short", plain[:23], nil, ErrMalformed},
		{"another version", with(plain, 0, 0x40), nil, ErrMalformed},
		{"a length below the shortest", with(plain, 3, 23), nil, ErrMalformed},
		{"a length beyond the datagram", with(plain, 3, 25), nil, ErrMalformed},
		{"multiplier 0", with(plain, 2, 0), nil, ErrMalformed},
		{"the multipoint bit", with(plain, 1, 0xe9), nil, ErrMalformed},
		{"no discriminator", append(plain[:4:4], append(make([]byte, 4), plain[8:]...)...), nil, ErrMalformed},
		{"up without a discriminator of ours", append(plain[:8:8], append(make([]byte, 4), plain[12:]...)...), nil, ErrMalformed},
		{"no authentication where there has to be", plain, key, ErrAuth},
		{"authentication where there is none", sealed, nil, ErrAuth},
		{"another key", sealed, []byte("other"), ErrAuth},
		{"another type of authentication", with(sealed, 24, 4), key, ErrAuth},
		{"another sequence than signed", with(sealed, 31, 8), key, ErrAuth},
		{"another state than signed", with(sealed, 1, 0x6c), key, ErrAuth},
	} {
		if p, err := Parse(tt.b, tt.key); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %+v, %v, want %v", tt.name, p, err, tt.want)
		}
	}
	if _, err := Parse(append(plain, 1, 2, 3), nil); err != nil {
		t.Errorf("bytes behind the packet: got %v, want them ignored", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample.Append(nil, nil), "")
	signed := sample
	signed.Auth = &Auth{KeyID: 1, Sequence: 9}
	f.Add(signed.Append(nil, []byte("k")), "k")
	f.Fuzz(func(t *testing.T, b []byte, key string) {
		var k []byte
		if key != "" && len(key) <= 20 {
			k = []byte(key)
		}
		p, err := Parse(b, k)
		if err != nil {
			return
		}
		again, err := Parse(p.Append(nil, k), k)
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("got %+v, %v, want %+v", again, err, p)
		}
	})
}

func TestStatesAndReasonsHaveNames(t *testing.T) {
	for _, text := range []string{AdminDown.String(), Up.String(), State(9).String(), TimeExpired.String(), Diag(30).String()} {
		if text == "" || strings.Contains(text, "%") {
			t.Errorf("got %q", text)
		}
	}
}
