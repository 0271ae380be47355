// Package words finds the word that somebody meant who wrote another one, and says which
// there are.
package words

import "strings"

// Nearest gives the one of known that word is most likely meant to be, if one is near:
// two letters off at most, and less than half of it. Case does not count. Of several
// as near it is the first.
func Nearest(word string, known []string) (string, bool) {
	best, found := min(2, len(word)/2)+1, ""
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < best {
			best, found = d, k
		}
	}
	return found, found != ""
}

// Or lists words as a sentence does: a, b or c.
func Or(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// distance is Levenshtein's: the letters to add, drop or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal, row[j+1] = row[j+1], min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
