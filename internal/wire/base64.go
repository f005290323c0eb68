// Bodies are base64 whatever Content-Transfer-Encoding says, and the sender may break lines as it likes
// (RFC 8951 section 3); one widely used client ends its body with a NUL byte.

package wire

import (
	"encoding/base64"
	"errors"
)

// lineLength is the longest line that every known peer reads; some refuse a body on one line.
const lineLength = 76

var (
	errNoBody = errors.New("empty body")
	errBase64 = errors.New("not base64")
)

// DecodeBase64 returns the bytes that body encodes. CR, LF, space and tab are skipped wherever they stand ("receivers
// SHOULD be tolerant of ... white space", RFC 8951 section 3.1) and NUL at the end. Any other byte outside the standard alphabet,
// missing or misplaced padding, non-zero padding bits and an empty body are errors. body is not changed.
func DecodeBase64(body []byte) ([]byte, error) {
	packed := make([]byte, 0, len(body))
	ended := false
	for _, b := range body {
		switch b {
		case '\r', '\n', ' ', '\t':
		case 0:
			ended = true
		default:
			if ended {
				return nil, errBase64
			}
			packed = append(packed, b)
		}
	}
	if len(packed) == 0 {
		return nil, errNoBody
	}
	n, err := base64.StdEncoding.Strict().Decode(packed, packed)
	if err != nil {
		return nil, errBase64
	}
	return packed[:n], nil
}

// EncodeBase64 returns der in lines of at most 76 characters, each ended by a line feed.
func EncodeBase64(der []byte) []byte {
	const lineBytes = lineLength / 4 * 3
	out := make([]byte, 0, base64.StdEncoding.EncodedLen(len(der))+len(der)/lineBytes+1)
	for len(der) > 0 {
		n := min(len(der), lineBytes)
		out = base64.StdEncoding.AppendEncode(out, der[:n])
		out = append(out, '\n')
		der = der[n:]
	}
	return out
}
