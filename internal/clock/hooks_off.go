//go:build !testhooks

package clock

import "time"

const systemPoll = time.Minute

func systemNow() time.Time { return time.Now() }
