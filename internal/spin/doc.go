// Package spin has what loops need that look at a word until another processor has changed it.
package spin
