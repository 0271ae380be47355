package nearest

import "testing"

func TestWordFindsWhatWasMeant(t *testing.T) {
	known := []string{"status", "trace", "drain", "weight", "asn"}
	for _, tt := range []struct{ word, want string }{
		{"statsu", "status"},
		{"STATUS", "status"},
		{"weigth", "weight"},
		{"dran", "drain"},
		{"train", "drain"},
		{"asm", "asn"},
		{"as", "asn"},
		{"a", ""},
		{"", ""},
		{"quorum", ""},
		{"st", ""},
	} {
		if got, found := Word(tt.word, known); got != tt.want || found != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.word, got, found, tt.want)
		}
	}
	if got, found := Word("status", nil); found {
		t.Errorf("of no words: got %q, want none", got)
	}
}
