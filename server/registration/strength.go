// Codes that somebody else chose. A code is the whole proof of a device's identity, so one that could be guessed, or that the maker prints on
// every box, is refused. The rule is stated in docs/devices-and-codes.md.

package registration

import (
	"regexp"
	"strings"
)

const (
	maxCodeLength    = 128
	minCodeDistinct  = 6 // different characters
	wantCodeBits     = 128
	minIDForDerived  = 4
	predictableRun   = 3
	predictableShare = 2 // at least one in so many characters must not follow from those before it
)

// knownCodes are what products and manuals come with. They are compared without case, and only to tell what is wrong: none of them is long enough.
var knownCodes = map[string]bool{
	"dojot": true, "foo123": true, "ejbca": true, "changeme": true, "change_me": true, "password": true, "passw0rd": true, "secret": true, "admin": true,
	"default": true, "letmein": true, "mosquitto": true, "iotagent": true, "thingsboard": true, "tenant": true, "sysadmin": true, "test": true,
	"guest": true, "device": true, "enroll": true, "qwerty": true, "123456": true, "12345678": true, "0123456789": true, "estpwd": true, "estuser": true,
}

// alphabets are tried in this order; a code counts with the bits of the first one that has all its characters. What separates groups does not count.
var alphabets = []struct {
	name  string
	chars string
	bits  float64 // per character
}{
	{"digits", "0123456789", 3.32},
	{"hexadecimal digits", "0123456789abcdef", 4},
	{"hexadecimal digits", "0123456789ABCDEF", 4},
	{"letters of one case and digits", "abcdefghijklmnopqrstuvwxyz0123456789", 5},
	{"letters of one case and digits", "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 5},
}

const otherBits = 6

var (
	codeForm   = regexp.MustCompile(`^[!-~]+$`)
	uuidForm   = regexp.MustCompile(`(?i)^\{?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?$`)
	separators = strings.NewReplacer("-", "", "_", "", ".", "", ":", "", "/", "")
)

// CheckCodeStrength refuses a chosen code for a device that has, by what it looks like, fewer than 128 bits. The detail never quotes the code.
func CheckCodeStrength(device, code string) error {
	weak := func(format string, args ...any) error { return refuse(Invalid, "code_weak", format, args...) }
	plain := separators.Replace(code)
	folded := strings.ToLower(code)
	switch {
	case code == "":
		return weak("the code is empty")
	case len(code) > maxCodeLength:
		return refuse(Invalid, "code_form", "the code is longer than %d characters", maxCodeLength)
	case !codeForm.MatchString(code):
		return refuse(Invalid, "code_form", "a code consists of printable ASCII characters without blanks")
	case knownCodes[folded] || knownCodes[strings.ToLower(plain)]:
		return weak("the code is a well-known default")
	case len(device) >= minIDForDerived && strings.Contains(folded, strings.ToLower(device)):
		return weak("the code contains the device's id")
	case uuidForm.MatchString(code):
		return weak("a UUID has at most 122 random bits; a code needs %d", wantCodeBits)
	}
	characters, length, bits := "characters", len(code), float64(otherBits) // what separates groups may be part of such a code
	for _, a := range alphabets {
		if strings.Trim(plain, a.chars) == "" {
			characters, length, bits = a.name, len(plain), a.bits
			break
		}
	}
	if got := int(float64(length) * bits); got < wantCodeBits {
		return weak("%d %s have at most %d bits; a code needs %d (26 letters and digits, or 32 hexadecimal digits)", length, characters, got, wantCodeBits)
	}
	if n := distinct(plain); n < minCodeDistinct {
		return weak("the code has only %d different characters", n)
	}
	if p := predictable(strings.ToLower(plain)); p*predictableShare > len(plain) {
		return weak("%d of the code's %d characters repeat or continue what stands before them", p, len(plain))
	}
	return nil
}

func distinct(s string) int {
	seen := map[rune]bool{}
	for _, r := range s {
		seen[r] = true
	}
	return len(seen)
}

// predictable counts characters that end a group of three that was there before, or continue a row such as aaa, abc or 975.
func predictable(s string) int {
	seen := map[string]bool{}
	n := 0
	for i := predictableRun - 1; i < len(s); i++ {
		group := s[i-predictableRun+1 : i+1]
		if seen[group] || int(s[i])-int(s[i-1]) == int(s[i-1])-int(s[i-2]) {
			n++
		}
		seen[group] = true
	}
	return n
}
