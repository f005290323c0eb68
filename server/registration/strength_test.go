// Which chosen codes are taken: whatever a random generator makes is, what people and products make up is not.

package registration_test

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/natal-pki/natal/server/registration"
)

func TestWeakCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ code, reason string }{
		{"dojot", "code_weak"}, {"Dojot", "code_weak"}, {"foo123", "code_weak"}, {"change-me", "code_weak"}, {"", "code_weak"},
		{"Tr0ub4dor&3", "code_weak"}, {"12345678901234567890123456789012345678901234567890", "code_weak"},
		{strings.Repeat("dojot", 10), "code_weak"}, {strings.Repeat("a", 64), "code_weak"}, {"abcdefghijklmnopqrstuvwxyz0123456789", "code_weak"},
		{"passwordpasswordpasswordpassword", "code_weak"}, {"SN-000001-8f3kq02mvnz6tyw1xa7p5rjd", "code_weak"},
		{"sn-000001" + "q8f3kv02mnz6tyw1xa7p5rjd", "code_weak"}, {"550e8400-e29b-41d4-a716-446655440000", "code_weak"},
		{"8f3kq02mvnz6tyw1xa7p5rjdb", "code_weak"}, // 25 letters and digits
		{"0f1e2d3c4b5a69788796a5b4c3d2e1f", "code_weak"},
		{"8f3kq02m vnz6tyw1xa7p5rjdb9", "code_form"}, {"8f3kq02mvnz6tyw1xa7p5rjdä9", "code_form"}, {"8f3kq02mvnz6tyw1xa7p5rjdb\x009", "code_form"},
		{strings.Repeat("8f3kq02mvnz6tyw1xa7p5rjdb9", 5), "code_form"},
	} {
		err := registration.CheckCodeStrength("SN-000001", c.code)
		wantKind(t, err, registration.Invalid, c.reason)
		if err != nil && len(c.code) > 6 && strings.Contains(err.Error(), c.code) {
			t.Errorf("the refusal quotes the code: %v", err)
		}
	}
}

func TestRandomCodesAreTaken(t *testing.T) {
	t.Parallel()
	random := make([]byte, 17)
	digits := new(big.Int).Exp(big.NewInt(10), big.NewInt(39), nil)
	for range 20000 {
		rand.Read(random)
		long := make([]byte, 24) // 24 characters of it would now and then have one case only, and count with the bits of that
		rand.Read(long)
		n, err := rand.Int(rand.Reader, digits)
		if err != nil {
			t.Fatal(err)
		}
		lower := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random))[:26]
		for _, code := range []string{
			lower, strings.ToUpper(lower), lower[:5] + "-" + lower[5:10] + "-" + lower[10:15] + "-" + lower[15:20] + "-" + lower[20:],
			base64.StdEncoding.EncodeToString(random), base64.RawURLEncoding.EncodeToString(long), hex.EncodeToString(random[:16]), fmt.Sprintf("%039d", n),
		} {
			if err := registration.CheckCodeStrength("SN-000001", code); err != nil {
				t.Fatalf("%s: %v", code, err)
			}
		}
	}
}
